package redis_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/wsgate/caddy-wsgate/handlers/store/redis"
	"github.com/wsgate/caddy-wsgate/handlers/store/redis/redistest"
)

// freePort is a port that nobody listens on.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// wantShared finds out whether two nodes share everything.
func wantShared(t *testing.T, a, b *node) {
	t.Helper()
	await(t, "the two to hear each other", func() bool {
		_, err1 := a.Gather(context.Background(), []byte("1"))
		got, err2 := b.Gather(context.Background(), []byte("1"))
		return err1 == nil && err2 == nil && len(got) == 1
	})
	a.wantIn("a", reject("u", 1))
	b.wantFull("b", reject("u", 1))
	b.wantIn("c", evict("u", 1))
	await(t, "the eviction", func() bool { return slices.Contains(a.told(), "a") })
	b.Release("c")
	b.revoke(user("alice"))
	await(t, "the revocation", func() bool { return a.refuses("alice") })
}

func (n *node) wantNoPassword(password string) {
	n.t.Helper()
	for _, line := range n.logs.All() {
		if text := fmt.Sprint(line.Message, line.ContextMap()); strings.Contains(text, password) {
			n.t.Errorf("the password is in the log: %s", text)
		}
	}
}

var echoing = answering(func(q []byte) []byte { return q })

// Defect: a socket, or a password that has to be encoded in a URL, can't be
// used.
func TestSocketAndPassword(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "s")
	server := redistest.Start(t, "--unixsocket", socket)
	const password = `p@s/s#w?o%r:d €"\`
	server.Do("ACL", "SETUSER", "ga:te", "on", ">"+password, "~*", "&*", "+@all")
	login := url.UserPassword("ga:te", password).String()
	a := startNode(t, "unix://"+login+"@"+socket+"?db=2", "a", echoing)
	b := startNode(t, "redis://"+login+"@"+server.Addr+"/2", "b", echoing)
	wantShared(t, a, b)
	c := startNode(t, "redis://ga%3Ate:wrong-s3cret@"+server.Addr+"/2", "c")
	await(t, "the password to be refused", func() bool { return !c.Up() })
	c.wantSaid("redis is away")
	c.wantNoPassword("wrong-s3cret")
	if cause := c.logs.All()[0].ContextMap()["error"].(string); !strings.Contains(cause, "WRONGPASS") {
		t.Errorf("the cause is %q", cause)
	}
}

// authority signs certificates.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.issue("ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// issue writes a certificate and its key to files of this name.
func (a *authority) issue(name string, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.Subject = pkix.Name{CommonName: name}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := template, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	write(a.t, a.file(name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	write(a.t, a.file(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// trusts makes a node believe this authority, and no other.
func trusts(a *authority) option {
	return func(o *redis.Options) {
		o.TLS = &tls.Config{RootCAs: x509.NewCertPool()}
		o.TLS.RootCAs.AddCert(a.cert)
	}
}

// Defect: TLS is not checked, or a handshake waits for that of TLS longer than
// its timeout.
func TestTLS(t *testing.T) {
	t.Parallel()
	ca, other := newAuthority(t), newAuthority(t)
	ca.issue("server", &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	ca.issue("named", &x509.Certificate{DNSNames: []string{"redis.example"}})
	start := func(certificate string) (*redistest.Server, string) {
		port := freePort(t)
		return redistest.Start(t, "--tls-port", port, "--tls-auth-clients", "no", "--tls-ca-cert-file", ca.file("ca.pem"),
			"--tls-cert-file", ca.file(certificate+".pem"), "--tls-key-file", ca.file(certificate+".key")), "rediss://:s3cret@127.0.0.1:" + port + "/0"
	}
	server, url := start("server")
	server.Do("CONFIG", "SET", "requirepass", "s3cret")
	wantShared(t, startNode(t, url, "a", trusts(ca), echoing), startNode(t, url, "b", trusts(ca), echoing))
	_, elsewhere := start("named")
	for name, refused := range map[string]*node{
		"another authority":       startNode(t, url, "c", trusts(other)),
		"those of the system":     startNode(t, url, "d"),
		"another name":            startNode(t, elsewhere, "e", trusts(ca)),
		"no TLS at all":           startNode(t, "rediss://:s3cret@"+server.Addr, "f", trusts(ca)),
		"TLS where none is asked": startNode(t, strings.Replace(url, "rediss", "redis", 1), "g"),
	} {
		await(t, name+" to be refused", func() bool { return !refused.Up() })
		refused.wantSaid("redis is away")
		refused.wantNoPassword("s3cret")
	}
	n := newNode(t, url, "cold", trusts(ca)) // has no connection yet
	defer n.Close()
	server.Pause()
	n.wantIn("a", reject("u", 1))
	server.Resume()
}

// Defect: after a failover nobody finds the new master, or it is asked what
// only a master may do.
func TestSentinelFailover(t *testing.T) {
	t.Parallel()
	master, replica := redistest.Start(t), redistest.Start(t)
	replica.Do("REPLICAOF", "127.0.0.1", master.Port())
	await(t, "the replica to follow", func() bool {
		return strings.Contains(master.Do("INFO", "replication"), "state=online")
	})
	dir, port := t.TempDir(), freePort(t)
	conf := write(t, filepath.Join(dir, "sentinel.conf"), fmt.Appendf(nil, "bind 127.0.0.1\nport %s\ndir %s\n"+
		"sentinel monitor main 127.0.0.1 %s 1\nsentinel down-after-milliseconds main 500\nsentinel failover-timeout main 5000\n", port, dir, master.Port()))
	sentinel := exec.Command("redis-server", conf, "--sentinel")
	if err := sentinel.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		sentinel.Process.Kill()
		sentinel.Wait()
	})
	await(t, "the sentinel to listen", func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	watched := func(o *redis.Options) {
		o.Sentinel = "main"
		o.URLs = append(o.URLs, "redis://127.0.0.1:1") // one that is down
	}
	url := "redis://127.0.0.1:" + port
	a, b := startNode(t, url, "a", watched, echoing), startNode(t, url, "b", watched, echoing)
	await(t, "both to be up", func() bool { return a.Learned() && b.Learned() && a.Up() && b.Up() })
	wantShared(t, a, b)
	a.wantIn("x", reject("w", 2))
	b.wantIn("y", reject("w", 2))
	before := len(a.said())

	master.Kill()
	await(t, "it to be noticed", func() bool { return !a.Up() && !b.Up() })
	a.wantIn("during", reject("v", 1))
	await(t, "both to be up", func() bool { return a.Up() && b.Up() })
	b.wantFull("more", reject("w", 2))
	b.wantFull("more", reject("v", 1))
	await(t, "both to hear each other", func() bool {
		got, err := a.Gather(context.Background(), []byte("1"))
		return err == nil && len(got) == 1
	})
	b.revoke(user("bob"))
	await(t, "the revocation", func() bool { return a.refuses("bob") })
	if said := a.said()[before:]; !slices.Equal(said, []string{"redis is away", "redis is back"}) {
		t.Errorf("the log says %q", said)
	}
}

// Defect: a script asks for keys of two slots, a node does not hear what is
// said on another, or is not asked where the keys are.
func TestCluster(t *testing.T) {
	t.Parallel()
	var servers []*redistest.Server
	var urls []string
	for range 3 {
		s := redistest.Start(t, "--cluster-enabled", "yes", "--cluster-port", freePort(t), "--cluster-node-timeout", "5000")
		servers, urls = append(servers, s), append(urls, "redis://"+s.Addr)
	}
	for i, slots := range [][2]string{{"0", "5460"}, {"5461", "10922"}, {"10923", "16383"}} {
		servers[i].Do("CLUSTER", "ADDSLOTSRANGE", slots[0], slots[1])
	}
	for _, s := range servers[1:] {
		bus := s.Do("CONFIG", "GET", "cluster-port")
		servers[0].Do("CLUSTER", "MEET", "127.0.0.1", s.Port(), values(bus)[1])
	}
	for _, s := range servers {
		await(t, "the Cluster", func() bool {
			info := s.Do("CLUSTER", "INFO")
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:3")
		})
	}
	clustered := func(seeds ...string) option {
		return func(o *redis.Options) { o.URLs, o.Cluster = seeds, true }
	}
	a := startNode(t, "", "a", clustered(urls[0]), echoing)
	b := startNode(t, "", "b", clustered(urls[1], urls[2]), echoing)
	wantShared(t, a, b)
	for _, tunnel := range ids("tunnel", 12) { // in different slots
		r := handshake("x"+tunnel, reject("u", 1))
		r.Tunnel, r.Rates = tunnel, rates("u", time.Hour, 2)
		if v, err := a.acquire(r); err != nil || !v.Admitted() {
			t.Fatalf("%+v, %v", v, err)
		}
		if v, err := b.acquire(r); err != nil || v.Full >= 0 {
			t.Fatalf("%+v, %v", v, err)
		}
		r.ID = "y"
		if v, err := b.acquire(r); err != nil || v.Limited != 0 {
			t.Fatalf("%+v, %v", v, err)
		}
		a.Release("x" + tunnel)
	}
	if !a.Up() || !b.Up() {
		t.Error("Redis is said to be away")
	}
}

// The rights that the documentation names are enough.
func TestRights(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../docs/nodes.md")
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(text), "\nACL SETUSER gate ")
	line, _, _ = strings.Cut(line, "\n")
	server := redistest.Start(t)
	server.Do(append([]string{"ACL", "SETUSER", "gate"}, strings.Fields(strings.ReplaceAll(line, ">…", ">secret"))...)...)
	url := "redis://gate:secret@" + server.Addr + "/0"
	a, b := startNode(t, url, "a", prefix("wsgate:"), patient, echoing), startNode(t, url, "b", prefix("wsgate:"), patient, echoing)
	wantShared(t, a, b)
	a.wantSaid()
	b.wantSaid()
}
