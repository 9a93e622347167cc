package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// maxBody bounds an answer, after decompression.
	maxBody = 1 << 20
	// maxResponseHeader bounds what comes before the body.
	maxResponseHeader = 64 << 10
)

// fetcher gets documents from an issuer. It follows no redirect, keeps no
// cookie and no connection, and dials no link-local address.
type fetcher struct {
	secure *http.Client // https
	local  *http.Client // http: loopback addresses only, and no proxy
}

func newFetcher(timeout time.Duration, roots *x509.CertPool) *fetcher {
	client := func(control func(network, address string, _ syscall.RawConn) error) *http.Client {
		dialer := &net.Dialer{Timeout: timeout, Control: control}
		return &http.Client{
			Transport: &http.Transport{
				DialContext:            dialer.DialContext,
				TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
				TLSHandshakeTimeout:    timeout,
				ResponseHeaderTimeout:  timeout,
				MaxResponseHeaderBytes: maxResponseHeader,
				// The next fetch is minutes away.
				DisableKeepAlives: true,
			},
			// A redirect could lead anywhere, also away from TLS.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	f := &fetcher{secure: client(refuseLinkLocal), local: client(requireLoopback)}
	if transport, ok := f.secure.Transport.(*http.Transport); ok {
		transport.Proxy = http.ProxyFromEnvironment
	}
	return f
}

var (
	errLinkLocal = errors.New("refusing to dial a link-local address")
	errNotLocal  = errors.New("refusing to dial over plain http what is not a loopback address")
	errBodySize  = errors.New("the answer is longer than 1 MiB")
)

// refuseLinkLocal looks at the address that is about to be dialled, behind
// every name and rebinding of one.
func refuseLinkLocal(_, address string, _ syscall.RawConn) error {
	resolved, err := netip.ParseAddrPort(address)
	if err != nil || isLinkLocal(resolved.Addr()) {
		return errLinkLocal
	}
	return nil
}

func requireLoopback(_, address string, _ syscall.RawConn) error {
	resolved, err := netip.ParseAddrPort(address)
	if err != nil || !resolved.Addr().Unmap().IsLoopback() {
		return errNotLocal
	}
	return nil
}

// get returns the body and header of a 200 answer. Errors hold neither the
// URL, which may have a key in its query, nor anything of the body.
func (f *fetcher) get(ctx context.Context, address, accept string) (string, http.Header, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return "", nil, errors.New("making the request: it is not a URL")
	}
	request.Header.Set("Accept", accept)
	request.Header.Set("User-Agent", "caddy-wsgate")
	client := f.secure
	if request.URL.Scheme == "http" {
		client = f.local
	}
	response, err := client.Do(request)
	if err != nil {
		return "", nil, fmt.Errorf("making the request: %w", withoutURL(err))
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return "", nil, fmt.Errorf("making the request: status %d", response.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxBody+1))
	if err != nil {
		return "", nil, fmt.Errorf("reading the answer: %w", withoutURL(err))
	}
	if len(body) > maxBody {
		return "", nil, fmt.Errorf("reading the answer: %w", errBodySize)
	}
	return string(body), response.Header, nil
}

// maxErrorText bounds what an error of net/http may quote from the server.
const maxErrorText = 300

// withoutURL takes the URL out of an error of net/http, and the excess out of
// its text.
func withoutURL(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	if text := err.Error(); len(text) > maxErrorText {
		return errors.New(text[:maxErrorText] + "…")
	}
	return err
}

// The bounds within which an issuer's Cache-Control decides: shorter would
// hammer it, longer would pin a key that was withdrawn.
const (
	minMaxAge = time.Minute
	maxMaxAge = 24 * time.Hour
)

// maxAge is how long an answer says it is fresh (RFC 9111 §5.2.2.1), within
// bounds, or the standard when it says nothing that counts.
func maxAge(h http.Header, standard time.Duration) time.Duration {
	for _, line := range h.Values("Cache-Control") {
		for directive := range strings.SplitSeq(line, ",") {
			name, value, _ := strings.Cut(strings.Trim(directive, blanks), "=")
			if !strings.EqualFold(name, "max-age") {
				continue
			}
			seconds, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 64)
			switch {
			case errors.Is(err, strconv.ErrRange) || seconds > uint64(maxMaxAge/time.Second):
				return maxMaxAge
			case err != nil:
				return standard
			}
			return max(time.Duration(seconds)*time.Second, minMaxAge)
		}
	}
	return standard
}
