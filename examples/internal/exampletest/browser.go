package exampletest

import (
	"context"
	"os/exec"

	"github.com/chromedp/chromedp"
)

// Browser opens the page in a headless Chromium and returns what the script,
// whose value is a promise of a string, comes to.
func (e *Example) Browser(page, script string) string {
	t := e.t
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		Missing(t, "chromium is not installed (Debian: apt-get install chromium)")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-domain-reliability", true), chromedp.Flag("disable-dev-shm-usage", true),
		// Nothing but the example is there for it to talk to.
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"),
		chromedp.WSURLReadTimeout(patience),
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
	ctx, cancel = context.WithTimeout(ctx, patience)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx, chromedp.Navigate(e.URL(page))); err != nil {
		t.Fatalf("opening %s in the browser: %v", page, err)
	}
	got, err := chromedp.Run(ctx, chromedp.Evaluate[string](script, chromedp.EvalAwaitPromise))
	if err != nil {
		t.Fatalf("in the browser: %v", err)
	}
	return got
}
