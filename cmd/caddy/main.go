// Command caddy is Caddy with its standard modules and wsgate: the program
// that `xcaddy build --with github.com/wsgate/caddy-wsgate` makes.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "github.com/wsgate/caddy-wsgate"
)

func main() {
	caddycmd.Main()
}
