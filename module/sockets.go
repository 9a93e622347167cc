package module

import (
	"errors"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

// live are the sockets of this process. They outlive the configs under which
// they were accepted.
var live tunnel.Registry

// log is the logger of the config that runs now: sockets outlive the one they
// were accepted under, and the log files that it wrote to.
var log atomic.Pointer[zap.Logger]

func logger() *zap.Logger {
	if l := log.Load(); l != nil {
		return l
	}
	return zap.NewNop()
}

// observer reports what happens to sockets. It holds nothing of the config
// that accepted them.
type observer struct{}

// Opened implements tunnel.Observer.
func (observer) Opened(s *tunnel.Socket) {
	metrics.sockets.opened(s)
	metrics.handshakes.WithLabelValues(s.Tunnel, resultAccepted).Inc()
	perUpstream.add(s.Upstream, 1)
	if c := logger().Check(zapcore.InfoLevel, "connection opened"); c != nil {
		c.Write(socketFields(s)...)
	}
	emit(eventOpened, func() map[string]any { return eventData(socketFields(s)) })
}

// Pong implements tunnel.Observer.
func (observer) Pong(s *tunnel.Socket, rtt time.Duration) {
	metrics.rtt.WithLabelValues(s.Tunnel).Observe(rtt.Seconds())
}

// Closed implements tunnel.Observer. Only when all is said the socket ceases to
// be live: a drain waits for that.
func (observer) Closed(s *tunnel.Socket, end tunnel.Summary) {
	metrics.closes.WithLabelValues(s.Tunnel, string(end.By), end.Reason).Inc()
	metrics.duration.WithLabelValues(s.Tunnel).Observe(end.Duration.Seconds())
	perUpstream.add(s.Upstream, -1)
	releaseAdopted(s.ID)
	if c := logger().Check(zapcore.InfoLevel, "connection closed"); c != nil {
		c.Write(summaryFields(s, end)...)
	}
	emit(eventClosed, func() map[string]any { return eventData(summaryFields(s, end)) })
	metrics.sockets.closed(s, end)
}

// summaryFields are the fields of the line about a socket's end.
func summaryFields(s *tunnel.Socket, end tunnel.Summary) []zapcore.Field {
	return append(socketFields(s),
		zap.Duration("duration", end.Duration),
		zap.Uint16("close_code", end.Code),
		zap.String("close_reason", end.Reason),
		zap.String("closed_by", string(end.By)),
		zap.Uint64("bytes_in", end.In.Bytes),
		zap.Uint64("bytes_out", end.Out.Bytes),
		zap.Uint64("messages_in", end.In.Messages),
		zap.Uint64("messages_out", end.Out.Messages),
	)
}

// eventData are the fields of a log line as the data of an event.
func eventData(fields []zapcore.Field) map[string]any {
	encoder := zapcore.NewMapObjectEncoder()
	for _, field := range fields {
		field.AddTo(encoder)
	}
	return encoder.Fields
}

// socketFields are the fields that every line about a socket has.
func socketFields(s *tunnel.Socket) []zapcore.Field {
	return []zapcore.Field{
		zap.String("connection_id", s.ID),
		zap.String("tunnel", s.Tunnel),
		zap.String("user_id", s.User),
		zap.String("issuer", s.Issuer),
		zap.String("client_ip", s.ClientIP),
		zap.String("upstream", s.Upstream),
	}
}

// statusOf is the status that Caddy answers with for an error.
func statusOf(err error) int {
	var handler caddyhttp.HandlerError
	if errors.As(err, &handler) && handler.StatusCode != 0 {
		return handler.StatusCode
	}
	return 500
}

// backendDetail is what there is to say of a failed attempt, without Caddy's
// trace.
func backendDetail(err error) string {
	var handler caddyhttp.HandlerError
	if errors.As(err, &handler) && handler.Err != nil {
		return handler.Err.Error()
	}
	return err.Error()
}
