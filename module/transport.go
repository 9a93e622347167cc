package module

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/wsgate/caddy-wsgate/handlers/handshake"
	"github.com/wsgate/caddy-wsgate/handlers/tunnel"
)

func init() {
	caddy.RegisterModule(new(Transport))
}

// Transport is the transport of a reverse_proxy that stands behind a ws_gate.
// It is Caddy's http transport with every one of its options; and when a
// backend accepts a WebSocket handshake that a gate has let through, it hands
// the connection over to the gate's tunnel in place of copying it within the
// request.
//
// Handshakes always get a connection of their own. `response_header_timeout`
// is 30s for them unless configured; the client then gets 504. Everything
// else is as in the http transport, requests that are no handshakes included.
type Transport struct {
	reverseproxy.HTTPTransport

	// handshakes is the same transport as for all else, but HTTP/1.1 only and
	// without connections that are used again.
	handshakes *http.Transport
}

// handshakeTimeout is how long a backend may be silent about a handshake.
const handshakeTimeout = 30 * time.Second

// CaddyModule returns the Caddy module information.
func (*Transport) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.reverse_proxy.transport.ws_tunnel",
		New: func() caddy.Module { return new(Transport) },
	}
}

// Provision sets up t.
func (t *Transport) Provision(ctx caddy.Context) error {
	if err := t.HTTPTransport.Provision(ctx); err != nil {
		return err
	}
	t.handshakes = t.Transport.Clone()
	t.handshakes.DisableKeepAlives = true
	t.handshakes.DisableCompression = true
	t.handshakes.ForceAttemptHTTP2 = false
	t.handshakes.HTTP2 = nil
	t.handshakes.TLSNextProto = nil
	t.handshakes.Protocols = new(http.Protocols)
	t.handshakes.Protocols.SetHTTP1(true)
	if tls := t.handshakes.TLSClientConfig; tls != nil {
		tls.NextProtos = []string{"http/1.1"}
	}
	if t.handshakes.ReadBufferSize == 0 {
		t.handshakes.ReadBufferSize = handshakeReadBuffer
	}
	if t.handshakes.WriteBufferSize == 0 {
		t.handshakes.WriteBufferSize = handshakeWriteBuffer
	}
	if t.handshakes.ResponseHeaderTimeout == 0 {
		t.handshakes.ResponseHeaderTimeout = handshakeTimeout
	}
	return nil
}

// Buffers for the heads of handshakes. They are small, and net/http makes new
// ones for every connection.
const (
	handshakeReadBuffer  = 1 << 10
	handshakeWriteBuffer = 2 << 10
)

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	gate := handoffOf(r.Context())
	if gate == nil || r.Header.Get("Upgrade") == "" {
		return t.HTTPTransport.RoundTrip(r)
	}
	t.SetScheme(r)
	var conn net.Conn
	trace := &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) { conn = got.Conn }}
	res, err := t.handshakes.RoundTrip(r.WithContext(httptrace.WithClientTrace(r.Context(), trace)))
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		return res, err
	}
	backend, err := accept(r, res, conn)
	if err == nil {
		err = gate.accept(backend)
	}
	if err != nil {
		_ = res.Body.Close()
		return nil, fmt.Errorf("accepting the handshake: %w", err)
	}
	return handedOver(r), nil
}

// handedOver is what reverse_proxy gets to finish with. The gate's writer lets
// nothing of it through.
func handedOver(r *http.Request) *http.Response {
	return &http.Response{
		Status: "204 No Content", StatusCode: http.StatusNoContent,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header), Body: http.NoBody, Request: r,
	}
}

// accept holds the backend's 101 to RFC 6455 §4.1 and takes its connection
// out of the response.
func accept(r *http.Request, res *http.Response, conn net.Conn) (*accepted, error) {
	if err := handshake.CheckAnswer(r.Header, res.Header); err != nil {
		return nil, fmt.Errorf("checking the backend's answer: %w", err)
	}
	early, err := earlyBytes(res, conn)
	if err != nil {
		return nil, err
	}
	return &accepted{
		conn:     conn,
		header:   res.Header,
		early:    early,
		reserved: reservedBits(handshake.Extensions(res.Header)),
		upstream: upstreamOf(r),
	}, nil
}

// upstreamOf names the upstream as the operator did.
func upstreamOf(r *http.Request) string {
	info, ok := reverseproxy.GetDialInfo(r.Context())
	switch {
	case !ok:
		return r.URL.Host
	case info.Upstream != nil && !strings.Contains(info.Upstream.Dial, "{"):
		return info.Upstream.Dial
	default:
		return info.Address
	}
}

// maxEarly bounds what is taken from behind a 101 at once. What is beyond it
// is still in the connection.
const maxEarly = 64 << 10

// earlyBuffers are for looking whether anything came behind a 101.
var earlyBuffers = sync.Pool{New: func() any { return new([4 << 10]byte) }}

// earlyBytes takes what the backend sent behind its 101 and the transport has
// read already. The deadline in the past makes the body give only that.
func earlyBytes(res *http.Response, conn net.Conn) (early []byte, err error) {
	if err := conn.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return nil, err
	}
	buf := earlyBuffers.Get().(*[4 << 10]byte)
	defer earlyBuffers.Put(buf)
	for len(early) < maxEarly {
		n, err := res.Body.Read(buf[:])
		early = append(early, buf[:n]...)
		if err != nil {
			break // the deadline, or what the tunnel meets again
		}
	}
	return early, conn.SetReadDeadline(time.Time{})
}

// reservedBits says which frame bits the negotiated extensions use.
func reservedBits(extensions []string) tunnel.Reserved {
	switch {
	case len(extensions) == 0:
		return tunnel.Reserved{}
	case !slices.ContainsFunc(extensions, func(name string) bool { return !strings.EqualFold(name, "permessage-deflate") }):
		return tunnel.PermessageDeflate
	default:
		return tunnel.AnyReserved
	}
}

// Cleanup closes idle connections.
func (t *Transport) Cleanup() error {
	if t.handshakes != nil {
		t.handshakes.CloseIdleConnections()
	}
	return t.HTTPTransport.Cleanup()
}

// Interface guards.
var (
	_ caddy.Provisioner                                = (*Transport)(nil)
	_ caddy.CleanerUpper                               = (*Transport)(nil)
	_ http.RoundTripper                                = (*Transport)(nil)
	_ reverseproxy.TLSTransport                        = (*Transport)(nil)
	_ reverseproxy.H2CTransport                        = (*Transport)(nil)
	_ reverseproxy.ProxyProtocolTransport              = (*Transport)(nil)
	_ reverseproxy.HealthCheckSchemeOverriderTransport = (*Transport)(nil)
	_ reverseproxy.RequestHeaderOpsTransport           = (*Transport)(nil)
)
