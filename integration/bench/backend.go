package main

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
)

// backend answers every handshake and sends every frame back unmasked. Clients
// mask with a key of zeros, so nothing has to be computed.
type backend struct{ net.Listener }

func startBackend() (*backend, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("starting the backend: %w", err)
	}
	b := &backend{ln}
	go b.accept()
	return b, nil
}

func (b *backend) addr() string { return b.Addr().String() }

func (b *backend) accept() {
	for {
		c, err := b.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_ = serve(c)
		}()
	}
}

func acceptKey(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

func serve(c net.Conn) error {
	// Small, since thousands of idle sockets have one; what is larger goes past it.
	br := bufio.NewReaderSize(c, 2048)
	key := ""
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return err
		}
		line = strings.TrimRight(line, "\r\n")
		if line == "" {
			break
		}
		if name, value, ok := strings.Cut(line, ":"); ok && strings.EqualFold(name, "Sec-WebSocket-Key") {
			key = strings.TrimSpace(value)
		}
	}
	if _, err := io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "+acceptKey(key)+"\r\n\r\n"); err != nil {
		return err
	}
	var frame []byte
	for {
		first, length, err := readHeader(br)
		if err != nil {
			return err
		}
		if first&0x0f == 8 {
			_, err := c.Write([]byte{0x88, 0})
			return err
		}
		frame = appendHeader(frame[:0], first, false, length)
		at := len(frame)
		frame = append(frame, make([]byte, length)...)
		if _, err := io.ReadFull(br, frame[at:]); err != nil {
			return err
		}
		if _, err := c.Write(frame); err != nil {
			return err
		}
	}
}

// readHeader reads a frame's header up to its payload.
func readHeader(br *bufio.Reader) (first byte, length int, err error) {
	head, err := br.Peek(2)
	if err != nil {
		return 0, 0, err
	}
	first = head[0]
	size, short := 2, head[1]&0x7f
	switch short {
	case 126:
		size += 2
	case 127:
		size += 8
	}
	whole := size
	if head[1]&0x80 != 0 {
		whole += 4
	}
	if head, err = br.Peek(whole); err != nil {
		return 0, 0, err
	}
	switch short {
	case 126:
		length = int(binary.BigEndian.Uint16(head[2:]))
	case 127:
		length = int(binary.BigEndian.Uint64(head[2:]))
	default:
		length = int(short)
	}
	if length < 0 || length > 1<<24 {
		return 0, 0, fmt.Errorf("a frame of %d bytes", length)
	}
	_, err = br.Discard(whole)
	return first, length, err
}

// appendHeader writes a frame's header; a masked one has a key of zeros.
func appendHeader(b []byte, first byte, masked bool, length int) []byte {
	var mask byte
	if masked {
		mask = 0x80
	}
	b = append(b, first)
	switch {
	case length < 126:
		b = append(b, mask|byte(length))
	case length < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, mask|126), uint16(length))
	default:
		b = binary.BigEndian.AppendUint64(append(b, mask|127), uint64(length))
	}
	if masked {
		b = append(b, 0, 0, 0, 0)
	}
	return b
}
