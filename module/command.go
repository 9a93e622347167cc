package module

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:      "ws-proxy",
		Usage:     "--to <upstream> --issuer <issuer> --audience <name> [<flags>]",
		Short:     "A gate in front of a WebSocket backend",
		Long:      sidecarHelp,
		CobraFunc: sidecarCommand,
	})
}

// sidecarHelp comes before the flags.
const sidecarHelp = `
Checks the JSON Web Token of every WebSocket handshake that comes to --from,
passes those that are good on to --to without the token, with the user in
X-User-Id, and watches over the sockets for as long as they live. Plain HTTP
requests are held to the same tokens. It is ws_proxy of the Caddyfile, without
a Caddyfile.

--from is where clients connect. With a hostname it is HTTPS with a certificate
that Caddy obtains and renews, and --from http://… turns that off; with a port
alone, or an IP address to listen on, it is plain HTTP.

Every flag has an environment variable: --ping-interval is WS_PROXY_PING_INTERVAL,
a switch is "true" or "false", and an empty one does not count. A flag on the
command line takes its place. Flags marked "names" take several, separated by
commas or blanks, or stand repeatedly; the variables of --require,
--handshake-rate and --max-connections take several separated by semicolons or
line breaks. Values may hold placeholders such as {env.TENANT} where the
Caddyfile's may.

A shared secret is never a flag, since every process of a machine can read the
command line: it is WS_PROXY_SECRET, or in the file of --secret-file.

Nothing is written but certificates, and there is no admin endpoint unless
--admin names an address; without it 'caddy stop' and the admin API do not work,
and SIGTERM drains the sockets and ends the process all the same.
`

// sidecarExamples come with the flags.
const sidecarExamples = `  Tokens of an identity provider, whose keys are discovered:
  $ caddy ws-proxy --from :8080 --to localhost:3000 --issuer https://id.example.com --audience chat

  HTTPS, browsers, two backends, and limits:
  $ caddy ws-proxy --from chat.example.com --path '/ws*' --to node1:3000 --to node2:3000 \
      --issuer https://id.example.com --audience chat --origin https://app.example.com \
      --require 'scope=chat:write' --max-connections '5 by user' --message-rate '50/1s burst 100'

  In a container: home-made tokens, a health endpoint and metrics, all but the flags below from
  the environment:
  $ export WS_PROXY_TO=backend:3000 WS_PROXY_AUDIENCE=chat WS_PROXY_SECRET=…
  $ caddy ws-proxy --issuer any --health :8081 --metrics
`

// sidecarCommand gives the command its flags and a help that has them in
// groups.
func sidecarCommand(cmd *cobra.Command) {
	addSidecarFlags(cmd.Flags())
	cmd.Example = sidecarExamples
	cmd.DisableFlagsInUseLine = true // Usage has them
	cmd.Args = cobra.NoArgs
	cmd.RunE = caddycmd.WrapCommandFuncForCobra(runSidecar)
	cmd.SetUsageFunc(func(cmd *cobra.Command) error {
		return writeSidecarUsage(cmd.OutOrStderr(), cmd)
	})
}

func writeSidecarUsage(w io.Writer, cmd *cobra.Command) error {
	var text strings.Builder
	fmt.Fprintf(&text, "Usage:\n  %s\n\nExamples:\n%s", cmd.UseLine(), cmd.Example)
	for _, group := range sidecarFlags {
		set := pflag.NewFlagSet(group.title, pflag.ContinueOnError)
		set.SortFlags = false
		for i := range group.flags {
			set.AddFlag(cmd.Flags().Lookup(group.flags[i].name))
		}
		fmt.Fprintf(&text, "\n%s:\n%s", group.title, set.FlagUsagesWrapped(100))
	}
	_, err := io.WriteString(w, text.String())
	return err
}

// runSidecar runs until the process is told to end.
func runSidecar(flags caddycmd.Flags) (int, error) {
	caddy.TrapSignals()
	s, err := readSidecar(flags.FlagSet, os.LookupEnv)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	config, err := s.adapt()
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	// The address is taken before anything starts; answers come when all has.
	health, err := s.listenHealth()
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	if err := caddy.Load(config, true); err != nil {
		return caddy.ExitCodeFailedStartup, s.blameLoading(err)
	}
	if health != nil {
		go health.serve()
	}
	s.announce(caddy.Log())
	select {} // the signals' handler ends the process
}

// announce says in a line what runs, and what of it deserves a second thought.
func (s *sidecar) announce(logger *zap.Logger) {
	logger.Info("gate is up", zap.String("from", s.from()), zap.Strings("to", s.texts("to")), zap.String("health", s.text("health")))
	if len(s.settings["issuer"]) == 0 {
		logger.Warn("without --issuer, whoever the keys are for may issue tokens: their iss is not looked at")
	}
	if s.on("insecure") {
		logger.Warn("--insecure: the certificate of the upstream is not verified")
	}
}

// Errors of flags that belong together.
var (
	errNoUpstream   = errors.New("--to is required: the backend, such as localhost:3000")
	errNoAud        = errors.New("--audience is required: the aud that tokens for this service have (any: accept those for other services too)")
	errNoKeys       = errors.New("--issuer is required; or keys (--jwks, --jwks-file, --secret-file or WS_PROXY_SECRET), for tokens whose iss is not looked at")
	errNoHealth     = errors.New("--metrics needs --health, on whose address they are")
	errNoHTTPS      = errors.New("--insecure is for an upstream with https, and no --to is one")
	errKeysOfSome   = errors.New("belongs to one --issuer, and there are several; a Caddyfile can give each its own")
	errNotForFlags  = errors.New("holds a line break or a control character")
	errBacktick     = errors.New("holds a backtick")
	errCaddyfileEnv = errors.New("{$…} is for Caddyfiles: let the shell fill it in, or write {env.…}")
)
