package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// patience is how long a test waits for what has to come. Nothing is judged
// by how long it took.
const patience = 30 * time.Second

// shots, in the environment, names a folder for a screenshot of each state.
const shots = "QUICKSTART_SHOTS"

// chromium starts a headless Chromium, or skips where there is none; never in
// CI.
func chromium(t *testing.T) context.Context {
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
		t.Skip("NO BROWSER: /usr/bin/chromium is missing, the page is NOT tested")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()),
		chromedp.WindowSize(1280, 900),
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-domain-reliability", true), chromedp.Flag("no-pings", true), chromedp.Flag("disable-dev-shm-usage", true),
		// Whatever the page asks beside loopback fails, and is noticed.
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

// site is the demo in a browser, and what the tests did to its page.
type site struct {
	gate    string
	browser context.Context

	mu      sync.Mutex
	used    map[string]bool // controls, by the name that keyOf gives them
	trouble []string        // what no page may do, by address or message
}

// tab is one page of the site.
type tab struct {
	*testing.T
	site *site
	ctx  context.Context
}

// open opens a tab and waits until the page has a token.
func (s *site) open(t *testing.T, query string) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(s.browser)
	t.Cleanup(cancel)
	p := s.watch(ctx, t)
	p.do(chromedp.Navigate("http://" + s.gate + "/" + query))
	p.wait(`document.getElementById("token").value !== ""`)
	return p
}

// watch looks for what no page may do: ask another host, throw, complain.
func (s *site) watch(ctx context.Context, t *testing.T) *tab {
	t.Helper()
	if err := chromedp.Do(ctx); err != nil { // the tab lives as long as this context
		t.Fatalf("opening a tab: %v", err)
	}
	err := chromedp.Listen(ctx, func(event any) {
		switch e := event.(type) {
		case *network.EventRequestWillBeSent:
			s.asked(e.Request.URL)
		case *network.EventWebSocketCreated:
			s.asked(e.URL)
		case *runtime.EventExceptionThrown:
			s.complain("exception: " + e.ExceptionDetails.Text)
		case *runtime.EventConsoleAPICalled:
			s.complain("console: " + string(e.Type))
		case *log.EventEntryAdded:
			// What Chromium itself says of a refusal, which is what the page is about.
			if !refusal.MatchString(e.Entry.Text) {
				s.complain(string(e.Entry.Source) + ": " + e.Entry.Text)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return &tab{t, s, ctx}
}

var refusal = regexp.MustCompile(`^WebSocket connection to .* failed|^Failed to load resource: (the server responded with a status of 4\d\d|net::ERR_CONNECTION_REFUSED)`)

func (s *site) asked(address string) {
	u, err := url.Parse(address)
	if err != nil || u.Host != s.gate {
		s.complain("another host: " + address)
	}
}

func (s *site) complain(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble = append(s.trouble, what)
}

// do carries out steps in the tab.
func (p *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		p.Fatalf("in the browser: %v", err)
	}
}

// eval evaluates JavaScript in the tab.
func eval[T any](p *tab, script string, options ...chromedp.EvaluateOption) T {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	got, err := chromedp.Run(ctx, chromedp.Evaluate[T](script, options...))
	if err != nil {
		p.Fatalf("evaluating %s: %v", script, err)
	}
	return got
}

// wait waits until a condition holds in the tab.
func (p *tab) wait(condition string) {
	p.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(30 * time.Millisecond) {
		if eval[bool](p, "!!("+condition+")") {
			return
		}
		if time.Now().After(deadline) {
			p.shot("failed")
			p.Fatalf("never: %s\n%s", condition, eval[string](p, "document.body.innerText"))
		}
	}
}

// text is what an element says.
func (p *tab) text(id string) string {
	p.Helper()
	return eval[string](p, fmt.Sprintf("document.getElementById(%q).textContent", id))
}

// says waits until an element says all of this.
func (p *tab) says(id string, parts ...string) {
	p.Helper()
	list, _ := json.Marshal(parts)
	p.wait(fmt.Sprintf("%s.every((part) => document.getElementById(%q).innerText.includes(part))", list, id))
}

// keyOf names a control in the page: those of the operator's lists by what
// they say, since there is one for each user or socket.
const keyOf = `((e) => e.id || (e.name ? e.name + "=" + e.value : e.innerText.trim() || e.tagName))`

// note remembers that a control was used.
func (p *tab) note(element string) {
	p.Helper()
	key := eval[string](p, keyOf+"("+element+")")
	p.site.mu.Lock()
	defer p.site.mu.Unlock()
	p.site.used[key] = true
}

// press clicks a control with the mouse, as soon as it is enabled.
func (p *tab) press(selector string) {
	p.Helper()
	element := fmt.Sprintf("document.querySelector(%q)", selector)
	p.wait(element + " && " + element + ".ariaDisabled !== 'true'")
	p.note(element)
	p.do(chromedp.Click(chromedp.CSS(selector)))
}

// choose picks a radio button.
func (p *tab) choose(name, value string) {
	p.Helper()
	p.press(fmt.Sprintf(`[name="%s"][value="%s"]`, name, value))
	if name == "bad" {
		p.fresh()
	}
}

// set changes a field as a user does, events included.
func (p *tab) set(selector, value string) {
	p.Helper()
	element := fmt.Sprintf("document.querySelector(%q)", selector)
	key := eval[string](p, fmt.Sprintf(`((e) => {
		e.value = %q;
		e.dispatchEvent(new Event("input", { bubbles: true }));
		e.dispatchEvent(new Event("change", { bubbles: true }));
		return e.id || e.name;
	})(%s)`, value, element))
	p.site.mu.Lock()
	p.site.used[key] = true
	p.site.mu.Unlock()
}

// fresh waits until the token is of the kind that the form says.
func (p *tab) fresh() {
	p.Helper()
	p.wait(`(() => {
		const form = new FormData(document.getElementById("token-form"));
		const claims = document.getElementById("claims").textContent;
		if (!claims.startsWith("{")) return false;
		const said = JSON.parse(claims);
		const past = said.exp < Date.now() / 1000 - 1800;
		const header = JSON.parse(atob(document.getElementById("token").value.split(".")[0]));
		return said.sub === form.get("sub") && said.name === form.get("name") && header.alg === form.get("alg")
			&& (past || said.exp - said.iat === Number(form.get("exp")))
			&& past === (form.get("bad") === "expired")
			&& (said.aud !== "demo") === (form.get("bad") === "audience");
	})()`)
}

// shot takes pictures of a state in light, dark and on a phone, if asked to.
func (p *tab) shot(name string) {
	p.Helper()
	folder := os.Getenv(shots)
	if folder == "" {
		return
	}
	for _, look := range []struct {
		name, scheme  string
		width, height int64
	}{{"light", "light", 1280, 900}, {"dark", "dark", 1280, 900}, {"phone", "light", 360, 740}, {"phone-dark", "dark", 360, 740}} {
		p.scheme(look.scheme)
		p.do(chromedp.EmulateViewport(look.width, look.height), chromedp.Sleep(300*time.Millisecond))
		ctx, cancel := context.WithTimeout(p.ctx, patience)
		image, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
		cancel()
		if err == nil {
			err = os.WriteFile(filepath.Join(folder, name+"-"+look.name+".png"), image, 0o644)
		}
		if err != nil {
			p.Error(err)
		}
	}
	p.scheme("light")
	p.do(chromedp.EmulateViewport(1280, 900))
}

// scheme has the system prefer light or dark.
func (p *tab) scheme(name string) {
	p.Helper()
	_, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}},
	})
	if err != nil {
		p.Fatal(err)
	}
}

// troubles are what the pages did that no page may do.
func (s *site) troubles() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.trouble, "\n")
}
