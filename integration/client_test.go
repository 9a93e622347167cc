package integration

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// handshake is an opening handshake as its lines, so that a test can say any
// of them differently.
type handshake struct {
	method, target, version string
	lines                   []string // header lines but Host
	host                    string   // the Host line in place of the usual one; "-" leaves it out
	body                    string
}

// hello is a valid handshake for /ws with further lines.
func hello(lines ...string) handshake {
	return handshake{
		method: "GET", target: "/ws", version: "HTTP/1.1",
		lines: append([]string{
			"Upgrade: websocket",
			"Connection: Upgrade",
			"Sec-WebSocket-Version: 13",
			"Sec-WebSocket-Key: " + newKey(),
		}, lines...),
	}
}

// bearer is hello with the token in the Authorization header.
func bearer(token string, lines ...string) handshake {
	return hello(append([]string{"Authorization: Bearer " + token}, lines...)...)
}

func newKey() string {
	var nonce [16]byte
	_, _ = rand.Read(nonce[:])
	return base64Std(nonce[:])
}

// without leaves out every line of that name.
func (h handshake) without(name string) handshake {
	h.lines = slices.DeleteFunc(slices.Clone(h.lines), func(l string) bool {
		return len(l) > len(name) && strings.EqualFold(l[:len(name)], name) && l[len(name)] == ':'
	})
	return h
}

// with adds lines.
func (h handshake) with(lines ...string) handshake {
	h.lines = append(slices.Clone(h.lines), lines...)
	return h
}

// instead replaces the lines of that name.
func (h handshake) instead(name string, lines ...string) handshake {
	return h.without(name).with(lines...)
}

func (h handshake) to(target string) handshake     { h.target = target; return h }
func (h handshake) as(method string) handshake     { h.method = method; return h }
func (h handshake) proto(version string) handshake { h.version = version; return h }
func (h handshake) onHost(host string) handshake   { h.host = host; return h }
func (h handshake) followedBy(b string) handshake  { h.body = b; return h }
func (h handshake) toPath(suffix string) handshake { h.target += suffix; return h }
func (h handshake) offering(p ...string) handshake {
	return h.with("Sec-WebSocket-Protocol: " + strings.Join(p, ", "))
}
func (h handshake) fromOrigin(o string) handshake { return h.with("Origin: " + o) }
func (h handshake) extension(value string) handshake {
	return h.with("Sec-WebSocket-Extensions: " + value)
}

func (h handshake) text(host string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s\r\n", h.method, h.target, h.version)
	switch h.host {
	case "":
		fmt.Fprintf(&b, "Host: %s\r\n", host)
	case "-":
	default:
		fmt.Fprintf(&b, "Host: %s\r\n", h.host)
	}
	for _, l := range h.lines {
		b.WriteString(l + "\r\n")
	}
	b.WriteString("\r\n" + h.body)
	return b.String()
}

// answer is a whole answer to a handshake.
type answer struct {
	status int
	header http.Header
	body   string
	text   string // the head as it came
	err    error
}

// conn is a client's connection, with nothing between the test and the bytes.
type conn struct {
	net.Conn
	t      testing.TB
	tcp    *net.TCPConn // under TLS too
	host   string
	br     *bufio.Reader
	answer answer
}

// send writes bytes that must be taken.
func (c *conn) send(b []byte) {
	c.t.Helper()
	c.SetWriteDeadline(time.Now().Add(patience))
	if _, err := c.Write(b); err != nil {
		c.t.Fatalf("writing to the gate: %v", err)
	}
}

// readAnswer reads one answer; with status 0 and err when there was none.
func (c *conn) readAnswer(method string) answer {
	c.SetReadDeadline(time.Now().Add(patience))
	var head bytes.Buffer
	for {
		line, err := c.br.ReadBytes('\n')
		head.Write(line)
		if err != nil {
			return answer{text: head.String(), err: err}
		}
		if len(bytes.TrimRight(line, "\r\n")) == 0 {
			break
		}
	}
	a := answer{text: head.String()}
	request := &http.Request{Method: method}
	// The head alone at first: a reader of more would take frames behind a 101.
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head.Bytes())), request)
	if err != nil {
		a.err = err
		return a
	}
	a.status, a.header = resp.StatusCode, resp.Header
	if a.status < 200 {
		return a
	}
	resp, err = http.ReadResponse(bufio.NewReader(io.MultiReader(bytes.NewReader(head.Bytes()), c.br)), request)
	if err != nil {
		a.err = err
		return a
	}
	body, err := io.ReadAll(resp.Body)
	a.err = err
	a.body = string(body)
	return a
}

// ended tells whether the gate closed the connection, with no byte before.
func (c *conn) ended() error {
	c.SetReadDeadline(time.Now().Add(patience))
	rest, err := io.ReadAll(c.br)
	if err != nil && !isReset(err) {
		return fmt.Errorf("the connection did not end: %w (after %d bytes)", err, len(rest))
	}
	if len(rest) > 0 {
		return fmt.Errorf("%d bytes before the end: %q", len(rest), rest[:min(len(rest), 200)])
	}
	return nil
}

// rest reads to the end of the connection, which must come.
func (c *conn) rest() string {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	rest, err := io.ReadAll(c.br)
	if err != nil && !isReset(err) {
		c.t.Fatalf("the connection did not end: %v (after %d bytes)", err, len(rest))
	}
	return string(rest)
}

// isReset tells an end of the connection from a deadline of the test.
func isReset(err error) bool {
	var ne net.Error
	return !errors.Is(err, os.ErrDeadlineExceeded) && (!errors.As(err, &ne) || !ne.Timeout())
}

// read reads the next frame, which must come.
func (c *conn) read() frame {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	f, err := readFrame(c.br)
	if err != nil {
		c.t.Fatalf("reading a frame from the gate: %v", err)
	}
	return f
}

// readPonging reads the next frame that is no ping, and answers pings.
func (c *conn) readPonging() frame {
	c.t.Helper()
	for {
		f := c.read()
		if f.first != 0x89 {
			return f
		}
		c.send(masked(0x8A, f.payload))
	}
}

// expectBytes reads exactly these bytes.
func (c *conn) expectBytes(want []byte) {
	c.t.Helper()
	expectBytes(c.t, "from the gate", c, c.br, want)
}

func expectBytes(t testing.TB, whence string, nc net.Conn, br *bufio.Reader, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	nc.SetReadDeadline(time.Now().Add(patience))
	n, err := io.ReadFull(br, got)
	if !bytes.Equal(got[:n], want[:n]) {
		i := 0
		for got[i] == want[i] {
			i++
		}
		t.Fatalf("%s: byte %d of %d differs: %x…, want %x…", whence, i, len(want), got[i:min(n, i+32)], want[i:min(len(want), i+32)])
	}
	if err != nil {
		t.Fatalf("%s: %v after %d of %d bytes", whence, err, n, len(want))
	}
}

// expectClose reads frames up to a close frame and checks its code.
func (c *conn) expectClose(code int) frame {
	c.t.Helper()
	for {
		f := c.read()
		if f.opcode() != 8 {
			if f.opcode() == 9 {
				continue
			}
			c.t.Fatalf("frame %x (%d bytes) where a close frame was due", f.first, len(f.payload))
		}
		if got := f.code(); got != code {
			c.t.Fatalf("close code %d %q, want %d", got, f.payload[min(2, len(f.payload)):], code)
		}
		if f.masked || f.first != 0x88 {
			c.t.Fatalf("a close frame with first byte %x, masked %v", f.first, f.masked)
		}
		return f
	}
}

// closeWrite ends the client's direction alone.
func (c *conn) closeWrite() error {
	if secure, ok := c.Conn.(*tls.Conn); ok {
		return secure.CloseWrite()
	}
	return c.tcp.CloseWrite()
}

// reset ends the connection with a RST.
func (c *conn) reset() {
	_ = c.tcp.SetLinger(0)
	c.tcp.Close()
}

// frame is a frame as it was read.
type frame struct {
	first   byte // FIN, RSV, opcode
	masked  bool
	payload []byte // unmasked
	raw     []byte
}

func (f frame) opcode() byte { return f.first & 0x0f }
func (f frame) fin() bool    { return f.first&0x80 != 0 }

// code is the close code; 1005 when there is none.
func (f frame) code() int {
	if len(f.payload) < 2 {
		return 1005
	}
	return int(binary.BigEndian.Uint16(f.payload))
}

func readFrame(br *bufio.Reader) (frame, error) {
	var f frame
	raw := make([]byte, 2, 14)
	if _, err := io.ReadFull(br, raw); err != nil {
		return f, err
	}
	f.first, f.masked = raw[0], raw[1]&0x80 != 0
	more := 0
	switch raw[1] & 0x7f {
	case 126:
		more = 2
	case 127:
		more = 8
	}
	if f.masked {
		more += 4
	}
	raw = raw[:2+more]
	if _, err := io.ReadFull(br, raw[2:]); err != nil {
		return f, err
	}
	length := uint64(raw[1] & 0x7f)
	switch length {
	case 126:
		length = uint64(binary.BigEndian.Uint16(raw[2:]))
	case 127:
		length = binary.BigEndian.Uint64(raw[2:])
	}
	if length > 1<<30 {
		return f, fmt.Errorf("a frame of %d bytes", length)
	}
	head := len(raw)
	raw = append(raw, make([]byte, length)...)
	if _, err := io.ReadFull(br, raw[head:]); err != nil {
		return f, err
	}
	f.raw = raw
	f.payload = slices.Clone(raw[head:])
	if f.masked {
		key := raw[head-4 : head]
		for i := range f.payload {
			f.payload[i] ^= key[i&3]
		}
	}
	return f, nil
}

// header is a frame's header with the shortest length encoding.
func header(first byte, mask bool, length int) []byte {
	var m byte
	if mask {
		m = 0x80
	}
	switch {
	case length <= 125:
		return []byte{first, m | byte(length)}
	case length <= 0xffff:
		return binary.BigEndian.AppendUint16([]byte{first, m | 126}, uint16(length))
	default:
		return binary.BigEndian.AppendUint64([]byte{first, m | 127}, uint64(length))
	}
}

// masked is a frame as a client sends it.
func masked(first byte, payload []byte) []byte {
	var key [4]byte
	_, _ = rand.Read(key[:])
	b := append(header(first, true, len(payload)), key[:]...)
	at := len(b)
	b = append(b, payload...)
	for i := range payload {
		b[at+i] ^= key[i&3]
	}
	return b
}

// unmasked is a frame as a server sends it.
func unmasked(first byte, payload []byte) []byte {
	return append(header(first, false, len(payload)), payload...)
}

// closing is the payload of a close frame.
func closing(code int, reason string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(code)), reason...)
}

// random is n bytes that nothing can guess or compress.
func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}
