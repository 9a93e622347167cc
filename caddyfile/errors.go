package caddyfile

import "errors"

var errEmpty = errors.New("is empty")

var errTransport = errors.New("its transport is ws_tunnel: leave `transport` out, or configure ws_gate and reverse_proxy apart")
