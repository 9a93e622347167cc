package tunnel

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Every form that a header can have, and every rule that it can break.
func TestScannerHeaders(t *testing.T) {
	const ok = Violation("")
	client, backend := Scanner{Masked: true}, Scanner{}
	inMessage := func(s Scanner) Scanner { s.open = true; return s }
	with := func(s Scanner, r Reserved) Scanner { s.Reserved = r; return s }
	deflate := with(client, PermessageDeflate)

	for _, c := range []struct {
		name    string
		scanner Scanner
		head    string
		want    Violation
		length  uint64
		after   int // the violation is there with so many bytes; 0: with 2
	}{
		{"text", client, "81 85 37fa213d", ok, 5, 0},
		{"binary, not final", client, "02 85 37fa213d", ok, 5, 0},
		{"empty", client, "82 80 00000000", ok, 0, 0},
		{"7 bit, most", client, "82 FD 00000000", ok, 125, 0},
		{"16 bit, least", client, "82 FE 007E 00000000", ok, 126, 0},
		{"16 bit, most", client, "82 FE FFFF 00000000", ok, 65535, 0},
		{"64 bit, least", client, "82 FF 0000000000010000 00000000", ok, 65536, 0},
		{"64 bit, most", client, "82 FF 7FFFFFFFFFFFFFFF 00000000", ok, 1<<63 - 1, 0},
		{"2^62", client, "82 FF 4000000000000000 00000000", ok, 1 << 62, 0}, // S-150
		{"from the backend", backend, "81 05", ok, 5, 0},
		{"from the backend, 16 bit", backend, "81 7E 0400", ok, 1024, 0},
		{"from the backend, 64 bit", backend, "81 7F 00000000FFFFFFFF", ok, 1<<32 - 1, 0},
		{"continuation", inMessage(client), "00 80 00000000", ok, 0, 0},
		{"last continuation", inMessage(client), "80 80 00000000", ok, 0, 0},
		{"ping", client, "89 80 00000000", ok, 0, 0},
		{"ping within a message", inMessage(client), "89 FD 00000000", ok, 125, 0},
		{"pong", client, "8A 90 00000000", ok, 16, 0},
		{"close", client, "88 82 00000000", ok, 2, 0},
		{"close without code", client, "88 80 00000000", ok, 0, 0},
		{"close within a message", inMessage(client), "88 80 00000000", ok, 0, 0},

		// S-140, RFC 6455 §5.1.
		{"unmasked", client, "81 05", errUnmasked, 0, 0},
		{"unmasked ping", client, "89 00", errUnmasked, 0, 0},
		{"unmasked close", client, "88 00", errUnmasked, 0, 0},
		{"smuggled request", client, "47 45 54 20", errOpcode, 0, 0}, // GET
		{"smuggled request, P", client, "50 4F 53 54", errContinuation, 0, 0},
		// S-141.
		{"masked by the backend", backend, "81 85", errMasked, 0, 0},
		{"masked close by the backend", backend, "88 80", errMasked, 0, 0},

		// S-142.
		{"RSV1", client, "C1 80", errReservedBits, 0, 0},
		{"RSV2", client, "A1 80", errReservedBits, 0, 0},
		{"RSV3", client, "91 80", errReservedBits, 0, 0},
		{"RSV123", client, "F1 80", errReservedBits, 0, 0},
		{"RSV1 on a ping", client, "C9 80", errReservedBits, 0, 0},
		{"RSV2 on a pong", client, "AA 80", errReservedBits, 0, 0},
		{"RSV3 on a close", client, "98 80", errReservedBits, 0, 0},
		{"RSV1 on a continuation", inMessage(client), "C0 80", errReservedBits, 0, 0},
		{"RSV1 of the backend", backend, "C1 00", errReservedBits, 0, 0},
		// S-143, RFC 7692 §6.
		{"deflate: RSV1 on text", deflate, "C1 80 00000000", ok, 0, 0},
		{"deflate: RSV1 on binary", deflate, "42 80 00000000", ok, 0, 0},
		{"deflate: none", deflate, "81 80 00000000", ok, 0, 0},
		{"deflate: of the backend", with(backend, PermessageDeflate), "C1 00", ok, 0, 0},
		{"deflate: RSV2", deflate, "A1 80", errReservedBits, 0, 0},
		{"deflate: RSV1 and RSV2", deflate, "E1 80", errReservedBits, 0, 0},
		{"deflate: RSV1 on a continuation", inMessage(deflate), "C0 80", errReservedBits, 0, 0},
		{"deflate: RSV1 on a ping", deflate, "C9 80", errReservedBits, 0, 0},
		{"deflate: RSV1 on a close", deflate, "C8 80", errReservedBits, 0, 0},
		{"any: all on text", with(client, AnyReserved), "F1 80 00000000", ok, 0, 0},
		{"any: all on a continuation", inMessage(with(client, AnyReserved)), "F0 80 00000000", ok, 0, 0},
		{"any: all on a ping", with(client, AnyReserved), "F9 80 00000000", ok, 0, 0},
		{"any: opcode 3", with(client, AnyReserved), "F3 80", errOpcode, 0, 0},

		// S-144.
		{"opcode 3", client, "83 80", errOpcode, 0, 0},
		{"opcode 4", client, "84 80", errOpcode, 0, 0},
		{"opcode 5", client, "85 80", errOpcode, 0, 0},
		{"opcode 6", client, "86 80", errOpcode, 0, 0},
		{"opcode 7", inMessage(client), "87 80", errOpcode, 0, 0},
		{"opcode B", client, "8B 80", errOpcode, 0, 0},
		{"opcode C", client, "8C 80", errOpcode, 0, 0},
		{"opcode D", client, "8D 80", errOpcode, 0, 0},
		{"opcode E", client, "8E 80", errOpcode, 0, 0},
		{"opcode F", backend, "8F 00", errOpcode, 0, 0},

		// S-145.
		{"ping in fragments", client, "09 80", errControlFinal, 0, 0},
		{"close in fragments", client, "08 80", errControlFinal, 0, 0},
		{"pong in fragments", client, "0A 80", errControlFinal, 0, 0},
		// S-146: known before the length itself.
		{"long ping", client, "89 FE 007E 00000000", errControlSize, 0, 0},
		{"long close", client, "88 FF 00000000FFFFFFFF", errControlSize, 0, 0},
		{"long pong of the backend", backend, "8A 7E", errControlSize, 0, 0},

		// RFC 6455 §5.4.
		{"continuation of nothing", client, "80 80", errContinuation, 0, 0},
		{"text within a message", inMessage(client), "81 80", errInterleaved, 0, 0},
		{"binary within a message", inMessage(client), "02 80", errInterleaved, 0, 0},

		// RFC 6455 §5.2: the shortest form.
		{"125 in 16 bit", client, "82 FE 007D 00000000", errLengthForm, 0, 4},
		{"0 in 16 bit", backend, "82 7E 0000", errLengthForm, 0, 4},
		{"65535 in 64 bit", client, "82 FF 000000000000FFFF 00000000", errLengthForm, 0, 10},
		{"0 in 64 bit", backend, "82 7F 0000000000000000", errLengthForm, 0, 10},
		// S-149.
		{"2^63", client, "82 FF 8000000000000000 00000000", errLengthRange, 0, 10},
		{"2^64-1", client, "82 FF FFFFFFFFFFFFFFFF 00000000", errLengthRange, 0, 10},
		{"2^63 of the backend", backend, "82 7F 8000000000000000", errLengthRange, 0, 10},
		{"2^64-1 of the backend", backend, "82 7F FFFFFFFFFFFFFFFF", errLengthRange, 0, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			head := unhex(t, c.head)
			after := c.after
			if c.want != ok && after == 0 {
				after = 2
			}
			for n := range len(head) + 1 { // S-152
				s := c.scanner
				h, done, err := s.Next(head[:n])
				switch {
				case c.want != ok && n >= after:
					if !errors.Is(err, c.want) || done {
						t.Fatalf("after %d bytes: %v, %v, want %q", n, done, err, c.want)
					}
				case err != nil:
					t.Fatalf("after %d bytes: %v", n, err)
				case done != (n == len(head)):
					t.Fatalf("after %d bytes: done %v", n, done)
				case !done:
					if s != c.scanner {
						t.Fatalf("after %d bytes the state has changed", n)
					}
				default:
					if h.Size != len(head) || h.Length != c.length || h.Opcode != head[0]&15 || h.Final != (head[0] >= 0x80) {
						t.Errorf("header %+v", h)
					}
					if s.boundary() != (c.length == 0) {
						t.Errorf("boundary %v with a payload of %d", s.boundary(), c.length)
					}
					wantOpen := c.scanner.open
					if h.Opcode < 8 {
						wantOpen = !h.Final
					}
					if s.open != wantOpen {
						t.Errorf("message open: %v", s.open)
					}
				}
			}
		})
	}
}

// A length near 2^63 is skipped as it comes, whatever the size of int.
func TestScannerSkipsHugePayloads(t *testing.T) {
	s := Scanner{}
	if _, ok, err := s.Next(unhex(t, "82 7F 7FFFFFFFFFFFFFFF")); !ok || err != nil {
		t.Fatal(ok, err)
	}
	for range 1000 {
		if n := s.skip(1 << 30); n != 1<<30 {
			t.Fatalf("skipped %d", n)
		}
	}
	if s.boundary() {
		t.Error("at a boundary")
	}
}

// FuzzScanner holds the scanner against a parser that sees the whole stream:
// the same frames, and a violation at the same byte.
func FuzzScanner(f *testing.F) {
	add := func(flags byte, chunk uint8, streams ...[]byte) {
		f.Add(bytes.Join(streams, nil), flags, chunk)
	}
	add(1, 1, frame(0x81, []byte("Hello"), true), frame(0x02, make([]byte, 300), true), frame(0x89, nil, true), frame(0x80, make([]byte, 70000), true))
	add(0, 3, frame(0x01, []byte("Hello"), false), frame(0x8A, make([]byte, 16), false), frame(0x00, nil, false), closeFrame(1000, "bye", false))
	add(3, 7, frame(0xC1, []byte("deflated"), true), frame(0xC1, nil, true))
	add(5, 2, frame(0xF9, nil, true), frame(0xF2, nil, true))
	add(1, 5, unhex(f, "82FF800000000000000000000000"))
	add(0, 5, unhex(f, "827F8000000000000000"))
	add(1, 4, unhex(f, "81FE007D00000000"))
	add(1, 9, []byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, stream []byte, flags byte, chunk uint8) {
		masked := flags&1 != 0
		reserved := [...]Reserved{{}, PermessageDeflate, AnyReserved, {First: 0x30}}[flags>>1&3]
		frames, size, broken := reference{masked, reserved}.parse(stream)

		s := Scanner{Masked: masked, Reserved: reserved}
		var at, end int // of what was scanned, of what has arrived
		var heads int
		step := int(chunk)%97 + 1
		for {
			more := s.skip(end - at)
			at += more
			if !s.boundary() {
				if end == len(stream) {
					break
				}
				end = min(end+step, len(stream))
				continue
			}
			h, ok, err := s.Next(stream[at:end])
			if err != nil {
				if !broken || at != size {
					t.Fatalf("%v at %d; the reference: broken %v at %d", err, at, broken, size)
				}
				return
			}
			if !ok {
				if end == len(stream) {
					break
				}
				end = min(end+step, len(stream))
				continue
			}
			if heads < len(frames) {
				w := frames[heads]
				if h.Size != w.head || int(h.Length) != len(w.payload) || h.Opcode != w.opcode() || h.Final != (w.b0 >= 0x80) || h.Mask != w.mask {
					t.Fatalf("frame %d: header %+v", heads, h)
				}
			}
			heads++
			at += h.Size
		}
		if broken {
			t.Fatalf("the violation at %d was not seen", size)
		}
		if heads != len(frames) && heads != len(frames)+1 {
			t.Fatalf("%d headers, the reference has %d frames", heads, len(frames))
		}
		if s.boundary() && heads != len(frames) {
			t.Fatal("at a boundary within a frame")
		}
	})
}
