package tunnel

import (
	"io"
	"net"
	"runtime"
	"testing"
	"time"
)

// BenchmarkEcho sends a message through a socket and back, over loopback.
func BenchmarkEcho(b *testing.B) {
	for _, k := range kinds {
		for _, n := range []int{128, 16 << 10} {
			b.Run(k.name+"/"+map[int]string{128: "128B", 16 << 10: "16KiB"}[n], func(b *testing.B) {
				u := over(b, Accepted{Policy: everySoOften}, k.pair, tcpPair)
				go func() { // answers as it is asked: masked frames have the same size less 4
					in := make([]byte, len(frame(0x82, make([]byte, n), true)))
					out := frame(0x82, make([]byte, n), false)
					for {
						if _, err := io.ReadFull(u.backend.conn, in); err != nil {
							return
						}
						if _, err := u.backend.conn.Write(out); err != nil {
							return
						}
					}
				}()
				f := frame(0x82, make([]byte, n), true)
				answer := make([]byte, len(f)-4)
				b.SetBytes(int64(len(f) + len(answer)))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := u.client.conn.Write(f); err != nil {
						b.Fatal(err)
					}
					if _, err := io.ReadFull(u.client.conn, answer); err != nil {
						b.Fatal(err)
					}
				}
				b.StopTimer()
				u.client.conn.Close()
				u.backend.conn.Close()
				u.end()
			})
		}
	}
}

// BenchmarkIdleSockets reports what a socket costs that has relayed and is
// idle now, without its two connections. Its numbers do not depend on b.N:
// -benchtime 1x is enough. (S-207)
func BenchmarkIdleSockets(b *testing.B) {
	for _, k := range kinds {
		b.Run(k.name, func(b *testing.B) {
			const n = 200
			type ends struct{ gateClient, client, gateBackend, backend net.Conn }
			var conns [n]ends
			sockets := make([]*tunnel, 0, n)
			for i := range conns {
				c := &conns[i]
				c.gateClient, c.client = k.pair(b)
				c.gateBackend, c.backend = tcpPair(b)
			}
			in, out := frame(0x82, make([]byte, 5000), true), frame(0x82, make([]byte, 5000), false)
			got := make([]byte, len(in))
			pass := func(from, to net.Conn, f []byte) {
				if _, err := from.Write(f); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(to, got[:len(f)]); err != nil {
					b.Fatal(err)
				}
			}
			for _, c := range conns { // what net and TLS keep of themselves
				pass(c.client, c.gateClient, in)
				pass(c.gateBackend, c.backend, in)
				pass(c.backend, c.gateBackend, out)
				pass(c.gateClient, c.client, out)
			}
			var before, after runtime.MemStats
			read := func(m *runtime.MemStats) {
				for range 6 { // pools keep for one, stacks are halved by one
					runtime.GC()
					time.Sleep(10 * time.Millisecond)
				}
				runtime.ReadMemStats(m)
			}
			read(&before)
			for _, c := range conns {
				u := &tunnel{t: b, closed: make(chan Summary, 2), patience: 10 * time.Second}
				u.Socket = Start(Accepted{Policy: everySoOften, Client: c.gateClient, Backend: c.gateBackend, Observer: u, Release: func() { u.released.Add(1) }})
				sockets = append(sockets, u)
			}
			for _, c := range conns {
				pass(c.client, c.backend, in)
				pass(c.backend, c.client, out)
			}
			read(&after)
			b.ReportMetric((float64(after.HeapAlloc)-float64(before.HeapAlloc))/n, "heap-B/socket")
			b.ReportMetric((float64(after.StackInuse)-float64(before.StackInuse))/n, "stack-B/socket")
			b.ReportMetric(0, "ns/op")
			for _, c := range conns {
				c.client.Close()
				c.backend.Close()
			}
			for _, u := range sockets {
				u.end()
			}
		})
	}
}
