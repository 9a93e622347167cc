package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// key presses a key, wherever the focus is.
func (p *tab) key(keys string) {
	p.Helper()
	p.do(chromedp.KeyEvent(keys))
}

// tabTo goes on with Tab until the focus is on the element. Each stop on the
// way shows that it has the focus.
func (p *tab) tabTo(selector string) {
	p.Helper()
	var stops []string
	for range 60 {
		p.key(kb.Tab)
		stops = append(stops, eval[string](p, keyOf+"(document.activeElement).slice(0, 30)"))
		if !eval[bool](p, `(() => {
			const e = document.activeElement;
			const seen = e.type === "radio" ? e.nextElementSibling : e;
			return e === document.body || getComputedStyle(seen).outlineStyle === "solid" && parseFloat(getComputedStyle(seen).outlineWidth) >= 2;
		})()`) {
			p.Errorf("the focus is not seen on %s", eval[string](p, "document.activeElement.outerHTML.slice(0, 200)"))
		}
		if eval[bool](p, fmt.Sprintf("document.activeElement.matches(%q)", selector)) {
			return
		}
	}
	p.Fatalf("Tab never reaches %s, but %q", selector, stops)
}

// The whole way without a mouse.
func testKeyboard(p *tab) {
	p.tabTo(".skip")
	p.note("document.activeElement")
	p.key(kb.Enter)
	p.wait(`document.activeElement.id === "connection"`)

	p.do(chromedp.Evaluate[chromedp.Void](`document.activeElement.blur(); getSelection().removeAllRanges(); scrollTo(0, 0); document.querySelector(".skip").focus()`))
	p.tabTo("[name=bad]")
	p.key(kb.ArrowRight) // expired
	p.fresh()
	p.tabTo("[name=carrier]")
	p.key(kb.ArrowRight) // query
	p.tabTo("[name=door]")
	p.key(kb.ArrowRight) // close frame
	p.tabTo("#connect")
	p.key(kb.Enter)
	p.says("result", "Refused with close code 3000")
	if !eval[bool](p, `document.activeElement.id === "connect"`) {
		p.Errorf("the focus has left the button for %s", eval[string](p, "document.activeElement.outerHTML.slice(0, 200)"))
	}

	p.do(chromedp.Evaluate[chromedp.Void](`document.querySelector(".skip").focus()`))
	p.tabTo("[name=bad]:checked")
	p.key(kb.ArrowLeft)
	p.fresh()
	p.tabTo("#mint")
	p.key(" ")
	p.tabTo("#connect")
	p.key(kb.Enter)
	p.says("result", "Connected")
	p.tabTo("#text")
	p.key(" by keyboard" + kb.Enter)
	p.says("log", "by keyboard")
	p.tabTo("#six")
	p.key(kb.Enter)
	p.says("six-result", "4 sockets let in, 2 refused")
	p.tabTo("#six-close")
	p.key(kb.Enter)
	p.says("users", "1 of 5")
	p.tabTo(`#users .sockets button`)
	p.key(kb.Enter)
	p.says("result", "Closed with 1008")
	p.wait(`document.activeElement.id === "sockets-title"`)
	p.shot("keyboard")
}

// What a screen reader, a phone and a dark room need.
func testAccessible(p *tab) {
	p.press("#connect")
	p.says("result", "Connected")
	p.press("#six")
	p.says("six-result", "4 sockets let in")
	p.says("users", "5 of 5")
	checkTree(p)
	for _, scheme := range []string{"light", "dark"} {
		p.scheme(scheme)
		p.wait(fmt.Sprintf(`matchMedia("(prefers-color-scheme: %s)").matches && document.getAnimations().length === 0`, scheme))
		checkContrast(p, scheme)
	}
	for _, width := range []int64{1280, 1000, 768, 360, 320} {
		p.do(chromedp.EmulateViewport(width, 740))
		p.wait(fmt.Sprintf("innerWidth === %d", width))
		checkWidth(p, width)
	}
	p.shot("busy")
	p.press("#six-close")
}

// checkTree looks at the page as a screen reader is given it.
func checkTree(p *tab) {
	p.Helper()
	tree, err := chromedp.Call(p.ctx, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
	if err != nil {
		p.Fatal(err)
	}
	controls := []string{"button", "link", "radio", "textbox", "combobox", "meter", "progressbar", "log", "DisclosureTriangle"}
	found := map[string]int{}
	names := map[string]bool{}
	for _, node := range tree.Nodes {
		if node.Ignored || node.Role == nil {
			continue
		}
		role, name := word(node.Role), word(node.Name)
		found[role]++
		if slices.Contains(controls, role) && strings.TrimSpace(name) == "" {
			p.Errorf("a %s without a name, %s", role, node.NodeID)
		}
		if role == "button" {
			if names[name] {
				p.Errorf("two buttons are called %q", name)
			}
			names[name] = true
		}
	}
	for role, n := range map[string]int{"banner": 1, "main": 1, "complementary": 1, "contentinfo": 1, "log": 1, "status": 3, "timer": 1, "region": 4} {
		if found[role] != n {
			p.Errorf("%d elements are a %s, want %d", found[role], role, n)
		}
	}
	if levels := eval[string](p, `[...document.querySelectorAll("h1, h2, h3")].filter((e) => e.checkVisibility()).map((e) => e.tagName[1]).join("")`); !strings.HasPrefix(levels, "12") || strings.Contains(levels, "13") {
		p.Errorf("the headings' levels are %s", levels)
	}
	if twice := eval[[]string](p, `[...document.querySelectorAll("[id]")].map((e) => e.id).filter((id, i, all) => all.indexOf(id) !== i)`); len(twice) > 0 {
		p.Errorf("ids that are there twice: %q", twice)
	}
}

func word(v *accessibility.Value) (text string) {
	if v != nil {
		_ = json.Unmarshal(v.Value, &text)
	}
	return text
}

// checkContrast holds all text to WCAG's 4.5:1.
func checkContrast(p *tab, scheme string) {
	p.Helper()
	poor := eval[[]string](p, `(() => {
		const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
		const rgb = (color) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
		const light = (c) => c.slice(0, 3).map((v) => v / 255).map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
		const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; } return [255, 255, 255, 255]; };
		const poor = [];
		for (const e of document.querySelectorAll("body *")) {
			const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || e.matches("input:not([type=radio]), textarea, select");
			if (!own || !e.checkVisibility() || e.matches("option, .unseen, .skip")) continue;
			const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
			const ratio = (a + .05) / (b + .05);
			if (ratio < 4.5) poor.push(ratio.toFixed(1) + " " + e.outerHTML.slice(0, 120));
		}
		const body = light(rgb(getComputedStyle(document.body).backgroundColor));
		if (body < .1 !== (`+fmt.Sprintf("%q", scheme)+` === "dark")) poor.push("the page's own background: " + body);
		return poor;
	})()`)
	for _, one := range poor {
		p.Errorf("%s: contrast %s", scheme, one)
	}
}

// checkWidth finds what sticks out at the right, and what is too small for a
// finger.
func checkWidth(p *tab, width int64) {
	p.Helper()
	if got := eval[int64](p, "document.documentElement.scrollWidth"); got > width {
		p.Errorf("at %d px the page is %d wide", width, got)
	}
	out := eval[[]string](p, `[...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && !e.closest("pre, .unseen, .skip") && e.getBoundingClientRect().right > innerWidth + .5).map((e) => e.outerHTML.slice(0, 120))`)
	for _, one := range out {
		p.Errorf("at %d px this sticks out: %s", width, one)
	}
	small := eval[[]string](p, `[...document.querySelectorAll("button, .button, input, select")].filter((e) => e.checkVisibility() && e.getBoundingClientRect().height < 32).map((e) => e.outerHTML.slice(0, 120))`)
	for _, one := range small {
		p.Errorf("at %d px this is too small for a finger: %s", width, one)
	}
}
