package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// browser starts a headless Chromium, or skips where there is none; never in
// CI.
func browser(t *testing.T) context.Context {
	t.Helper()
	program := ""
	for _, name := range []string{"/usr/bin/chromium", "chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			program = found
			break
		}
	}
	if program == "" {
		if os.Getenv("CI") == "true" {
			t.Fatal("NO BROWSER: /usr/bin/chromium is missing, and CI must have one")
		}
		t.Skip("NO BROWSER: /usr/bin/chromium is missing, what a real browser does is NOT tested")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-domain-reliability", true), chromedp.Flag("no-pings", true), chromedp.Flag("disable-dev-shm-usage", true),
		// Nothing but the harness is there for it to talk to.
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"),
		chromedp.WSURLReadTimeout(3*patience),
	)
	allocator, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(allocator, chromedp.WithErrorf(t.Logf))
	t.Cleanup(func() {
		ending, cancelEnding := context.WithTimeout(ctx, patience)
		defer cancelEnding()
		_ = chromedp.Cancel(ending)
		cancel()
	})
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("starting %s: %v", program, err)
	}
	return ctx
}

// page is an HTML page with the script that the tests call.
const page = `<!doctype html><title>harness</title><script>
// connect opens a socket, sends one message where it opens, and tells what
// became of it: when the echo is there, or when it is closed.
function connect(url, protocols, untilClosed) {
	return new Promise(resolve => {
		const said = {opened: false, protocol: '', message: '', code: 0, reason: '', clean: false, error: false, after: 0};
		const begin = performance.now();
		let ws;
		try {
			ws = protocols === null ? new WebSocket(url) : new WebSocket(url, protocols);
		} catch (e) {
			said.reason = String(e);
			resolve(said);
			return;
		}
		ws.onopen = () => { said.opened = true; said.protocol = ws.protocol; ws.send('hello'); };
		ws.onmessage = e => { said.message = e.data; if (!untilClosed) ws.close(1000, 'bye'); };
		ws.onerror = () => { said.error = true; };
		ws.onclose = e => { said.code = e.code; said.reason = e.reason; said.clean = e.wasClean; said.after = performance.now() - begin; resolve(said); };
	});
}
</script>`

// said is what a page saw of its socket.
type said struct {
	Opened   bool    `json:"opened"`
	Protocol string  `json:"protocol"`
	Message  string  `json:"message"`
	Code     int     `json:"code"`
	Reason   string  `json:"reason"`
	Clean    bool    `json:"clean"`
	Error    bool    `json:"error"`
	After    float64 `json:"after"` // ms until it was closed
}

// connects runs connect in the page.
func connects(ctx context.Context, t *testing.T, url string, protocols []string, untilClosed bool) said {
	t.Helper()
	list, err := json.Marshal(protocols)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	script := fmt.Sprintf("connect(%q, %s, %v)", url, list, untilClosed)
	got, err := chromedp.Run(ctx, chromedp.Evaluate[said](script, chromedp.EvalAwaitPromise))
	if err != nil {
		t.Fatalf("in the browser: %v", err)
	}
	return got
}

// What a page in a real browser sees: the subprotocol of its socket, the close
// code when its token expires, and with on_reject close why it is refused.
func TestBrowser(t *testing.T) {
	t.Parallel()
	p, e := newIDP(t), newEcho(t)
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprint(w, page)
	}))
	t.Cleanup(site.Close)
	sources := "from_query access_token\nfrom_cookies session\nfrom_subprotocol bearer\nfrom_subprotocol base64url.bearer.authorization.k8s.io.\norigins " + site.URL + "\n"
	g := startSeveral(t, []*idp{p}, "",
		gated{name: "http", upstream: e.addr, gate: sources},
		gated{name: "close", upstream: e.addr, gate: sources + "on_reject close\nrequire scope chat:write\nmax_connections 1 by user"},
		gated{name: "foreign", upstream: e.addr, gate: "on_reject close"}, // same_origin: the page is not of it
		gated{name: "expires", upstream: e.addr, gate: sources},
	)
	ctx := browser(t)
	ready, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	if err := chromedp.Do(ready, chromedp.Navigate(site.URL)); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return "ws://" + g.addr + "/ws/" + name }
	good := p.token(g, claims{"scope": "chat:write"})
	poor := p.token(g, claims{"sub": "poor"})
	expired := p.token(g, claims{"scope": "chat:write", "exp": 1_000_000_000})
	kube := "base64url.bearer.authorization.k8s.io." + b64([]byte(good))

	t.Run("S-123 accepted", func(t *testing.T) {
		for _, c := range []struct {
			name, url string
			protocols []string
			protocol  string
		}{
			{"pair", at("http"), []string{"bearer", good}, "bearer"},
			{"pair and a subprotocol", at("http"), []string{"bearer", good, "chat.v1"}, "chat.v1"},
			{"prefix and a subprotocol", at("http"), []string{"bearer." + good, "chat.v1"}, "chat.v1"},
			{"a subprotocol and the prefix", at("http"), []string{"chat.v1", "bearer." + good}, "chat.v1"},
			{"kubernetes", at("http"), []string{kube, "chat.v1"}, "chat.v1"},
			{"query", at("http") + "?access_token=" + good, nil, ""},
			{"query and a subprotocol", at("http") + "?a=1&access_token=" + good, []string{"chat.v1"}, "chat.v1"},
			{"on_reject close makes no difference", at("close"), []string{"bearer", good}, "bearer"},
		} {
			t.Run(c.name, func(t *testing.T) {
				got := connects(ctx, t, c.url, c.protocols, false)
				if !got.Opened || got.Protocol != c.protocol || got.Message != "hello" || got.Code != 1000 || !got.Clean {
					t.Errorf("the page saw %+v, want protocol %q and an echo", got, c.protocol)
				}
				if strings.Contains(got.Protocol, good) {
					t.Error("ws.protocol is the token")
				}
			})
		}
	})
	t.Run("refused over HTTP", func(t *testing.T) { // a page sees 1006, whatever the cause
		for name, protocols := range map[string][]string{
			"expired": {"bearer", expired}, "no token": {"chat.v1"}, "a lone prefix": {"bearer." + good},
		} {
			if got := connects(ctx, t, at("http"), protocols, true); got.Opened || got.Code != 1006 {
				t.Errorf("%s: the page saw %+v, want 1006", name, got)
			}
		}
	})
	t.Run("refused with a close frame", func(t *testing.T) {
		fastest := 1e6
		held := p.token(g, claims{"scope": "chat:write", "sub": "held"})
		g.open(t, bearerPair(held).to("/ws/close").fromOrigin(site.URL))
		for _, c := range []struct {
			name, url string
			protocols []string
			code      int
			reason    string
			protocol  string
		}{
			{"expired, pair", at("close"), []string{"bearer", expired}, 3000, "unauthorized", "bearer"},
			{"expired, pair and a subprotocol", at("close"), []string{"bearer", expired, "chat.v1"}, 3000, "unauthorized", "chat.v1"},
			{"expired, prefix", at("close"), []string{"bearer." + expired, "chat.v1"}, 3000, "unauthorized", "chat.v1"},
			{"expired, query", at("close") + "?access_token=" + expired, nil, 3000, "unauthorized", ""},
			{"no token", at("close"), nil, 3000, "unauthorized", ""},
			{"no token, several subprotocols", at("close"), []string{"chat.v2", "chat.v1"}, 3000, "unauthorized", "chat.v2"},
			{"scope, pair", at("close"), []string{"bearer", poor}, 3003, "forbidden", "bearer"},
			{"scope, prefix", at("close"), []string{"bearer." + poor, "chat.v1"}, 3003, "forbidden", "chat.v1"},
			{"scope, query", at("close") + "?access_token=" + poor, nil, 3003, "forbidden", ""},
			{"cap", at("close"), []string{"bearer", held}, 1013, "try again later", "bearer"},
			{"two tokens", at("close") + "?access_token=" + poor, []string{"bearer", good}, 1002, "bad request", "bearer"},
			{"foreign origin", at("foreign"), []string{"bearer", good}, 3003, "forbidden", "bearer"}, // S-76
		} {
			t.Run(c.name, func(t *testing.T) {
				got := connects(ctx, t, c.url, c.protocols, true)
				if got.Code != c.code || got.Reason != c.reason || got.Message != "" || got.Protocol != c.protocol || !got.Clean {
					t.Errorf("the page saw %+v, want %d %q with protocol %q", got, c.code, c.reason, c.protocol)
				}
				fastest = min(fastest, got.After)
			})
		}
		if fastest > 900 { // the gate keeps no page waiting that has answered
			t.Errorf("no page was told within %.0f ms", fastest)
		}
	})
	t.Run("S-34 expiry", func(t *testing.T) {
		exp := time.Now().Add(3 * time.Second).Unix()
		got := connects(ctx, t, at("expires"), []string{"bearer", p.token(g, claims{"exp": exp})}, true)
		if late := time.Since(time.Unix(exp, 0)); got.Code != 3000 || got.Message != "hello" || !got.Clean || late < -time.Second || late > 5*time.Second {
			t.Errorf("the page saw %+v, %v after the token's end", got, late)
		}
	})
}

// bearerPair is hello with the token as a pair of subprotocols.
func bearerPair(token string) handshake { return hello().offering("bearer", token) }
