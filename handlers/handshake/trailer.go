package handshake

import (
	"io"
	"net/http"
)

// WrapTrailers keeps the headers out of the request's trailers too: those of a
// chunked body, and of a stream of HTTP/2 or HTTP/3, arrive after every check
// has been made, and servers exist that merge them into the headers
// (RFC 9110 §6.5.1 allows it). Announced ones are taken back now; the values,
// which net/http adds once the body has been read, then.
func (id Identity) WrapTrailers(r *http.Request) {
	id.Strip(r.Trailer)
	if r.Body == nil || r.Body == http.NoBody {
		return
	}
	if r.ProtoMajor < 2 && r.ContentLength >= 0 {
		return // a body of known length has no trailers (RFC 9112 §7.1.2)
	}
	r.Body = &trailerStripper{r.Body, r, id}
}

// trailerStripper deletes identity headers from the trailers when they come.
type trailerStripper struct {
	io.ReadCloser
	request  *http.Request
	identity Identity
}

func (b *trailerStripper) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.identity.Strip(b.request.Trailer)
	}
	return n, err
}
