// Package wsgate is what a build of Caddy imports to get the gate: it
// registers every module and directive of the plugin and holds nothing else.
package wsgate

import (
	_ "github.com/wsgate/caddy-wsgate/caddyfile" // directives, and with them the modules
)
