package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

const handshakeTimeout = 20 * time.Second

// socket is a client's end.
type socket struct {
	net.Conn
	br *bufio.Reader
}

// dial makes one handshake through the proxy at addr.
func dial(addr, token string, buffer int) (*socket, error) {
	c, err := net.DialTimeout("tcp", addr, handshakeTimeout)
	if err != nil {
		return nil, err
	}
	s := &socket{c, bufio.NewReaderSize(c, buffer)}
	_ = c.SetDeadline(time.Now().Add(handshakeTimeout))
	if _, err := io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: "+addr+"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer "+token+"\r\n\r\n"); err != nil {
		c.Close()
		return nil, err
	}
	line, err := s.br.ReadString('\n')
	if err != nil {
		c.Close()
		return nil, err
	}
	if !strings.HasPrefix(line, "HTTP/1.1 101 ") {
		c.Close()
		return nil, fmt.Errorf("the answer is %q", strings.TrimSpace(line))
	}
	for line != "\r\n" {
		if line, err = s.br.ReadString('\n'); err != nil {
			c.Close()
			return nil, err
		}
	}
	_ = c.SetDeadline(time.Time{})
	return s, nil
}

// drop ends the socket with a RST, which leaves no port waiting.
func (s *socket) drop() {
	if tcp, ok := s.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	s.Close()
}

// next reads the next data message's header, with its payload unread, and
// answers pings on the way.
func (s *socket) next() (int, error) {
	for {
		first, length, err := readHeader(s.br)
		if err != nil {
			return 0, err
		}
		switch first & 0x0f {
		case 1, 2:
			return length, nil
		case 9:
			pong := appendHeader(make([]byte, 0, 6+length), 0x8A, true, length)
			at := len(pong)
			pong = append(pong, make([]byte, length)...)
			if _, err := io.ReadFull(s.br, pong[at:]); err != nil {
				return 0, err
			}
			if _, err := s.Write(pong); err != nil {
				return 0, err
			}
		default:
			return 0, fmt.Errorf("a frame of opcode %d", first&0x0f)
		}
	}
}
