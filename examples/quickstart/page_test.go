package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/target"
	"github.com/chromedp/chromedp"
)

// TestPage drives the page in a real browser, through every control and every
// state. Each part has users of its own, so that none meets another's cap.
func TestPage(t *testing.T) {
	browser := chromium(t)
	demo := runProgram(t)
	waitForKeys(t, demo.demo)
	s := &site{gate: demo.gate, browser: browser, used: map[string]bool{}}

	// What takes its time runs beside the rest.
	expiring := s.open(t, "?sub=expiring&exp=15&connect")

	t.Run("refused", func(t *testing.T) { testRefused(s.open(t, "?sub=ruth")) })
	t.Run("let in", func(t *testing.T) { testLetIn(s.open(t, "?sub=ivan")) })
	t.Run("six at once", func(t *testing.T) { testSix(s.open(t, "?sub=sixten")) })
	t.Run("six tabs", func(t *testing.T) { testTabs(s.open(t, "?sub=tabea")) })
	t.Run("operator", func(t *testing.T) { testOperator(t, s) })
	t.Run("keyboard", func(t *testing.T) { testKeyboard(s.open(t, "?sub=kay&exp=300")) })
	t.Run("accessible", func(t *testing.T) { testAccessible(s.open(t, "?sub=ada&exp=300")) })
	t.Run("expiry", func(t *testing.T) { expiring.T = t; testExpiry(expiring) })

	t.Run("every control was used", func(t *testing.T) {
		p := s.open(t, "?sub=zoe")
		for _, key := range eval[[]string](p, `[...document.querySelectorAll("button, a[href], summary, select, textarea, input:not([type=radio])")].map((e) => e.id || e.name || e.innerText.trim())`) {
			if !s.used[key] {
				t.Errorf("nothing used %q", key)
			}
		}
		for _, key := range eval[[]string](p, `[...document.querySelectorAll("[type=radio]")].map(`+keyOf+`)`) {
			if !s.used[key] {
				t.Errorf("nothing chose %q", key)
			}
		}
		t.Logf("used: %q", slices.Sorted(maps.Keys(s.used)))
	})
	t.Run("the gate stops", func(t *testing.T) { testStop(s.open(t, "?sub=otto&exp=300&connect"), demo) })

	if trouble := s.troubles(); trouble != "" {
		t.Errorf("the pages did what they may not:\n%s", trouble)
	}
}

// Each bad token through both doors: the page knows no more than a browser
// tells, and finds out the rest.
func testRefused(p *tab) {
	p.shot("start")
	carriers := []string{"subprotocol", "query", "cookie"}
	for i, kind := range []string{"expired", "audience", "key"} {
		p.choose("bad", kind)
		p.choose("carrier", carriers[i])

		p.choose("door", "ws")
		p.press("#connect")
		p.says("result", "Refused with an HTTP status", "1006")
		p.says("evidence", "1006, no reason", "invalid_token, which stands for 401", `401 Unauthorized, WWW-Authenticate: Bearer realm="quickstart", error="invalid_token"`)
		p.says("path", "401, refused", "never heard of it")
		p.shot("refused-http-" + kind)

		p.choose("door", "ws/close")
		p.press("#connect")
		p.says("result", "Refused with close code 3000", "unauthorized")
		p.says("evidence", "3000, unauthorized", "invalid_token, which stands for 401")
		p.says("path", "101, then 3000", "never heard of it")
		p.shot("refused-close-" + kind)
	}
	p.choose("bad", "")
	p.choose("carrier", "none")
	p.choose("door", "ws")
	p.press("#connect")
	p.says("evidence", "1006, no reason", "no_token, which stands for 401", `WWW-Authenticate: Bearer realm="quickstart"`)
	p.choose("door", "ws/close")
	p.press("#connect")
	p.says("result", "Refused with close code 3000")
	if title := eval[string](p, "document.title"); title != "✕ refused · wsgate quickstart" {
		p.Errorf("the title is %q", title)
	}

	// What somebody pasted is sent as it is, and a browser sends no rubbish.
	p.set("#token", "not a token")
	p.choose("carrier", "subprotocol")
	p.press("#connect")
	p.wait(`document.getElementById("result").dataset.state === "refused"`)
	p.says("result", "WebSocket")
	p.set("[name=exp]", "300")
	p.fresh()
	if eval[string](p, "document.cookie") != "" {
		p.Error("a script can read the cookie")
	}
}

// A good token by each carrier, and a conversation.
func testLetIn(p *tab) {
	p.set("[name=sub]", "irene")
	p.set("[name=name]", "Irene <b>Adler</b>") // stays text
	p.set("[name=exp]", "300")
	for i, carrier := range []string{"subprotocol", "query", "cookie"} {
		p.set("[name=alg]", []string{"RS256", "ES256"}[i%2])
		p.fresh()
		p.choose("carrier", carrier)
		p.choose("door", []string{"ws", "ws/close"}[i%2])
		p.press("#connect")
		p.says("result", "Connected: 101", "demo.v1")
		p.says("path", "101, let in", "knows irene")
		p.says("identity", "X-User-Id", "irene", "Irene <b>Adler</b>", "never came through", carrier)
		p.says("countdown", "The token of this socket expires in", "The gate closes it then")
		if i == 0 {
			p.shot("connected")
		}
		p.press("#disconnect")
		p.says("result", "Closed with 1000")
	}
	old := p.text("claims")
	p.press("#mint")
	p.wait(fmt.Sprintf(`document.getElementById("claims").textContent !== %q`, old))
	p.press("summary")
	p.wait(`document.querySelector("details").open`)
	p.press("#connect")
	p.says("result", "Connected")
	p.says("log", "greeting")
	p.set("#text", "Grüße, gate")
	p.press("#send")
	p.wait(`document.querySelectorAll("#log .received .said")[document.querySelectorAll("#log .received").length - 1].textContent === "Grüße, gate"`)
	p.press("#binary")
	p.wait(`[...document.querySelectorAll("#log .said")].filter((e) => e.textContent.startsWith("64 bytes: ")).length === 2`)
	p.shot("messages")

	// The gate's pings are seen nowhere but at the gate.
	p.wait(`Number(document.getElementById("pings").textContent) > 0`)
	p.says("users", "irene", "this page", "2\u00a0in")
	p.press("#disconnect")
}

// Six at once meet the cap of five, whichever way the gate says no.
func testSix(p *tab) {
	p.set("[name=exp]", "300")
	p.fresh()
	for _, c := range []struct{ door, refusal, carrier string }{{"ws", "refused: 1006", "query"}, {"ws/close", "refused: 1013 try again later", "cookie"}} {
		p.choose("door", c.door)
		p.choose("carrier", c.carrier)
		p.press("#six")
		p.says("six-result", "5 sockets let in, 1 refused", "5 accepted", "1 cap")
		p.says("six-list", c.refusal)
		p.says("users", "sixten", "5 of 5")

		// One more is one too many as well.
		p.press("#connect")
		p.says("path", map[string]string{"ws": "429, refused", "ws/close": "101, then 1013"}[c.door])
		p.says("evidence", "cap, which stands for 429", "200: the token is good, and caps count sockets only")
		p.shot("six-" + c.door[:2] + c.carrier)
		p.press("#six-close")
		p.wait(`[...document.querySelectorAll("#six-list li")].every((li) => li.innerText.includes("closed: 1000") || li.dataset.state === "refused")`)
		p.wait(`document.getElementById("six").ariaDisabled === "false"`)
		p.wait(`!document.getElementById("users").innerText.includes("sixten")`)
	}
}

// Real tabs, opened by the link: five are in, the sixth is not, and when one
// is closed there is room.
func testTabs(p *tab) {
	p.set("[name=exp]", "300")
	p.fresh()
	var tabs []*tab
	for i := range 6 {
		known := targets(p)
		p.press("#another")
		next := newTarget(p, known)
		ctx, cancel := chromedp.NewContext(p.ctx, chromedp.WithTargetID(next))
		p.Cleanup(cancel)
		other := p.site.watch(ctx, p.T)
		tabs = append(tabs, other)
		state := "open"
		if i == 5 {
			state = "refused"
		}
		other.wait(fmt.Sprintf(`document.getElementById("path")?.dataset.state === %q`, state))
	}
	sixth := tabs[5]
	sixth.says("evidence", "cap, which stands for 429")
	sixth.says("users", "tabea", "5 of 5")
	if address := eval[string](sixth, "location.href"); strings.Contains(address, "eyJ") {
		p.Error("a token is in the address of a tab")
	}
	p.do(chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.CallBrowser(ctx, target.CloseTarget, target.CloseTargetParams{TargetID: chromedp.FromContext(tabs[0].ctx).Target.TargetID})
		return err
	}))
	sixth.says("users", "4 of 5")
	sixth.press("#connect")
	sixth.says("result", "Connected")
	sixth.says("users", "5 of 5", "this page")
}

func targets(p *tab) map[target.ID]bool {
	p.Helper()
	infos, err := chromedp.Targets(p.ctx)
	if err != nil {
		p.Fatal(err)
	}
	known := map[target.ID]bool{}
	for _, info := range infos {
		known[info.TargetID] = true
	}
	return known
}

// newTarget waits for a tab that was not known.
func newTarget(p *tab, known map[target.ID]bool) target.ID {
	p.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(30 * time.Millisecond) {
		for id := range targets(p) {
			if !known[id] {
				return id
			}
		}
	}
	p.Fatal("the link opens no tab")
	return ""
}

// The token of a live socket runs out, and the gate closes it.
func testExpiry(p *tab) {
	p.shot("expiring")
	p.says("result", "Closed with 3000", "token expired", "get a new token, then connect again")
	p.says("path", "closed it: 3000")
	p.says("log", "greeting", "3000")
	p.says("token-note", "Expired")
	p.wait(`document.getElementById("life").hidden`)
	p.shot("expired")

	// Who connects again gets a new token first, as a client would do.
	p.press("#connect")
	p.says("result", "Connected")
	p.press("#disconnect")
}

// Ctrl-C, as the page sees it.
func testStop(p *tab, demo *program) {
	p.says("result", "Connected")
	demo.interrupt(p.T)
	p.says("result", "Closed with 1012", "the gate stops")
	p.says("operator-result", "Nobody answers: is the quickstart still running?")
	p.press("#mint")
	p.says("token-note", "Nobody answers")
	p.shot("stopped")
	p.press("#connect")
	p.says("result", "Nobody answers")
	if err := demo.cmd.Wait(); err != nil {
		p.Errorf("after SIGINT: %v", err)
	}
	if strings.Contains(demo.log.String(), "eyJ") {
		p.Errorf("a token is in the log:\n%s", &demo.log)
	}
}
