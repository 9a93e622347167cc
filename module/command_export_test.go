package module

import (
	"bytes"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The command is tested from outside, where the directives can be imported
// that its configuration is made with.

// SidecarConfig is the config that `caddy ws-proxy` runs.
func SidecarConfig(args []string, env map[string]string) ([]byte, error) {
	set := pflag.NewFlagSet("ws-proxy", pflag.ContinueOnError)
	addSidecarFlags(set)
	if err := set.Parse(args); err != nil {
		return nil, err
	}
	s, err := readSidecar(set, func(name string) (string, bool) {
		value, ok := env[name]
		return value, ok
	})
	if err != nil {
		return nil, err
	}
	return s.adapt()
}

// SidecarFlags are the names of all flags, and whether each is a switch.
func SidecarFlags() (names []string, switches map[string]bool) {
	switches = make(map[string]bool)
	for _, group := range sidecarFlags {
		for _, f := range group.flags {
			names = append(names, f.name)
			switches[f.name] = f.kind == ""
		}
	}
	return names, switches
}

// SidecarHelp is what --help shows.
func SidecarHelp() (string, error) {
	var out bytes.Buffer
	cmd := &cobra.Command{Use: "ws-proxy", Long: sidecarHelp}
	sidecarCommand(cmd)
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"--help"})
	err := cmd.Execute()
	return out.String(), err
}
