package handshake

import (
	"errors"
	"net/http"
	"slices"
	"testing"
)

// The example of RFC 6455 §1.3.
func TestAcceptKey(t *testing.T) {
	if got := AcceptKey(sampleKey); got != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Error(got)
	}
}

func TestCheckAnswer(t *testing.T) {
	accept := AcceptKey(sampleKey)
	// change is applied to a good answer; a nil value deletes the field.
	type change = map[string][]string
	offer := change{"Sec-WebSocket-Protocol": {"chat.v1, chat.v2"}, "Sec-WebSocket-Extensions": {"permessage-deflate; client_max_window_bits, x-b"}}
	tests := []struct {
		name     string
		req, res change
		want     string // detail of the error
	}{
		{"good", nil, nil, ""},
		{"S-94: case of tokens", nil, change{"Upgrade": {"WebSocket"}, "Connection": {"keep-alive, upgrade"}}, ""},
		{"S-88: no accept", nil, change{"Sec-Websocket-Accept": nil}, "answer has a wrong accept"},
		{"S-88: wrong accept", nil, change{"Sec-Websocket-Accept": {AcceptKey("other")}}, "answer has a wrong accept"},
		{"S-88: accept twice", nil, change{"Sec-Websocket-Accept": {accept, accept}}, "answer has a wrong accept"},
		{"S-88: accept in another case", nil, change{"Sec-Websocket-Accept": {"S3PPLMBITXAQ9KYGZZHZRBK+XOO="}}, "answer has a wrong accept"},
		{"S-88: key not sent", change{"Sec-WebSocket-Key": nil}, nil, "answer has a wrong accept"},
		{"S-88: no upgrade", nil, change{"Upgrade": nil}, "answer does not upgrade to websocket"},
		{"S-88: upgrade foo", nil, change{"Upgrade": {"foo"}}, "answer does not upgrade to websocket"},
		{"S-88: upgrade to two", nil, change{"Upgrade": {"websocket, h2c"}}, "answer does not upgrade to websocket"},
		{"S-88: no connection", nil, change{"Connection": nil}, "answer has no upgrade in connection"},
		{"S-88: connection close", nil, change{"Connection": {"close"}}, "answer has no upgrade in connection"},

		{"subprotocol chosen", offer, change{"Sec-Websocket-Protocol": {"chat.v2"}}, ""},
		{"subprotocol chosen, blanks", offer, change{"Sec-Websocket-Protocol": {" chat.v2\t"}}, ""},
		{"subprotocol not chosen", offer, nil, ""},
		{"subprotocol in another case", offer, change{"Sec-Websocket-Protocol": {"Chat.v1"}}, "answer has a subprotocol that was not offered"},
		{"subprotocol not offered", offer, change{"Sec-Websocket-Protocol": {"chat.v3"}}, "answer has a subprotocol that was not offered"},
		{"subprotocol without an offer", nil, change{"Sec-Websocket-Protocol": {"chat.v1"}}, "answer has a subprotocol that was not offered"},
		{"subprotocol empty", offer, change{"Sec-Websocket-Protocol": {""}}, "answer has a subprotocol that was not offered"},
		{"subprotocols, two lines", offer, change{"Sec-Websocket-Protocol": {"chat.v1", "chat.v2"}}, "answer has a subprotocol that was not offered"},
		{"subprotocols, one line", offer, change{"Sec-Websocket-Protocol": {"chat.v1, chat.v2"}}, "answer has a subprotocol that was not offered"},
		{"S-123: bearer taken from the offer", offer, change{"Sec-Websocket-Protocol": {"bearer"}}, "answer has a subprotocol that was not offered"},

		{"extension with other parameters", offer, change{"Sec-Websocket-Extensions": {"permessage-deflate; server_no_context_takeover"}}, ""},
		{"extensions on two lines", offer, change{"Sec-Websocket-Extensions": {"x-b", "permessage-deflate"}}, ""},
		{"S-127: extension not offered", offer, change{"Sec-Websocket-Extensions": {"permessage-deflate, x-c"}}, "answer has an extension that was not offered"},
		{"S-127: extension without an offer", nil, change{"Sec-Websocket-Extensions": {"permessage-deflate"}}, "answer has an extension that was not offered"},
		{"S-127: name inside a quoted parameter", change{"Sec-WebSocket-Extensions": {`x-a; p="1, x-b"`}}, change{"Sec-Websocket-Extensions": {"x-b"}}, "answer has an extension that was not offered"},
	}
	apply := func(h http.Header, c change) http.Header {
		for k, v := range c {
			if h[k] = v; v == nil {
				delete(h, k)
			}
		}
		return h
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			// The request as reverse_proxy spells it, the answer as net/http reads it.
			req := apply(http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-WebSocket-Key": {sampleKey}}, tc.req)
			res := apply(http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Accept": {accept}}, tc.res)
			err := CheckAnswer(req, res)
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if e := (*Error)(nil); !errors.As(err, &e) || e.Status != http.StatusBadGateway || e.Detail != tc.want {
				t.Errorf("got %v, want 502 %s", err, tc.want)
			}
		})
	}
}

func TestExtensions(t *testing.T) {
	h := http.Header{"Sec-WebSocket-Extensions": {`permessage-deflate; a; b=1, x-a; p="c\", d, e" , ,x-f`, "x-g"}}
	want := []string{"permessage-deflate", "x-a", "x-f", "x-g"}
	if got := Extensions(h); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
