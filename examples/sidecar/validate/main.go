// Command validate holds the sidecar's files to their schemas: the
// Containerfile is parsed as BuildKit does, the compose file is loaded by the
// reference implementation, the Kustomize base is built, and each object that
// comes of it is decoded strictly into the type of the Kubernetes API. Then it
// checks what no schema says: that the times, ports and names in them go
// together.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

func main() {
	folder := "."
	if len(os.Args) > 1 {
		folder = os.Args[1]
	}
	var failed error
	for _, check := range []struct {
		name string
		of   func(folder string) error
	}{{"Containerfile", containerfile}, {"compose.yaml", compose}, {"base", kustomization}} {
		if err := check.of(folder); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", check.name, err))
			continue
		}
		fmt.Println(check.name, "is valid")
	}
	if failed != nil {
		fmt.Fprintln(os.Stderr, failed)
		os.Exit(1)
	}
}

// problems are what is wrong, as far as it does not keep from looking on.
type problems []error

func (p *problems) unless(ok bool, format string, args ...any) {
	if !ok {
		*p = append(*p, fmt.Errorf(format, args...))
	}
}

const (
	nobody = 65532

	// What the drain takes by default, and the last lines of its log after it.
	spread    = 10 * time.Second
	grace     = 5 * time.Second
	lastWords = time.Second
)

// stopping is how long the gate takes to stop at most: sockets, then plain
// requests.
func stopping(spread, grace time.Duration) time.Duration { return spread + 2*grace + lastWords }

func containerfile(folder string) error {
	file, err := os.Open(filepath.Join(folder, "Containerfile"))
	if err != nil {
		return err
	}
	defer file.Close()
	parsed, err := parser.Parse(file)
	if err != nil {
		return err
	}
	stages, _, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		return err
	}
	var p problems
	p.unless(len(parsed.Warnings) == 0, "warnings: %v", parsed.Warnings)
	p.unless(len(stages) == 2, "%d stages", len(stages))
	for _, command := range stages[0].Commands {
		if c, ok := command.(*instructions.CopyCommand); ok && c.From == "" {
			for _, source := range c.SourcePaths {
				_, err := os.Stat(filepath.Join(folder, "../..", source))
				p.unless(err == nil, "COPY: %v", err)
			}
		}
	}
	last := stages[len(stages)-1]
	p.unless(last.BaseName == "scratch", "the image is made from %s", last.BaseName)
	var user, entrypoint bool
	for _, command := range last.Commands {
		switch c := command.(type) {
		case *instructions.UserCommand:
			user = true
			p.unless(c.User == fmt.Sprintf("%d:%d", nobody, nobody), "USER %s: Kubernetes wants numbers", c.User)
		case *instructions.EntrypointCommand:
			entrypoint = true
			p.unless(!c.PrependShell, "ENTRYPOINT needs a shell, and there is none")
		case *instructions.CopyCommand:
			p.unless(c.From == stages[0].Name, "COPY --from=%s", c.From)
		case *instructions.RunCommand:
			p.unless(false, "RUN in an image without a shell")
		}
	}
	p.unless(user && entrypoint, "no USER or no ENTRYPOINT")
	return errors.Join(p...)
}

func compose(folder string) error {
	options, err := cli.NewProjectOptions([]string{filepath.Join(folder, "compose.yaml")}, cli.WithName("sidecar"), cli.WithResolvedPaths(true))
	if err != nil {
		return err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return err
	}
	gate, err := project.GetService("gate")
	if err != nil {
		return err
	}
	backend, err := project.GetService("backend")
	if err != nil {
		return err
	}
	var p problems
	p.unless(gate.ReadOnly && slices.Contains(gate.CapDrop, "ALL"), "the gate may write or do too much")
	p.unless(gate.StopGracePeriod != nil && time.Duration(*gate.StopGracePeriod) >= stopping(spread, grace), "stop_grace_period is shorter than the drain")
	_, before := gate.DependsOn["backend"]
	p.unless(before, "the backend is not stopped behind the gate")
	p.unless(len(backend.Ports) == 0, "the backend is published")
	_, err = os.Stat(filepath.Join(gate.Build.Context, gate.Build.Dockerfile))
	p.unless(err == nil, "build: %v", err)
	return errors.Join(p...)
}

// objects are what comes of the base.
type objects struct {
	deployment *appsv1.Deployment
	service    *corev1.Service
	config     *corev1.ConfigMap
	budget     *policyv1.PodDisruptionBudget
	policy     *networkingv1.NetworkPolicy
}

func build(folder string) (o objects, err error) {
	made, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(folder, "base"))
	if err != nil {
		return o, err
	}
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, json.SerializerOptions{Yaml: true, Strict: true})
	for _, resource := range made.Resources() {
		text, err := resource.AsYAML()
		if err != nil {
			return o, err
		}
		object, err := runtime.Decode(strict, text)
		if err != nil {
			return o, fmt.Errorf("%s: %w", resource.CurId(), err)
		}
		switch object := object.(type) {
		case *appsv1.Deployment:
			o.deployment = object
		case *corev1.Service:
			o.service = object
		case *corev1.ConfigMap:
			o.config = object
		case *policyv1.PodDisruptionBudget:
			o.budget = object
		case *networkingv1.NetworkPolicy:
			o.policy = object
		default:
			return o, fmt.Errorf("%s: is not checked", resource.CurId())
		}
	}
	if o.deployment == nil || o.service == nil || o.config == nil || o.budget == nil || o.policy == nil {
		return o, fmt.Errorf("not all objects are there: %+v", o)
	}
	return o, nil
}

func kustomization(folder string) error {
	o, err := build(folder)
	if err != nil {
		return err
	}
	var p problems
	pod := o.deployment.Spec.Template
	for name, selector := range map[string]map[string]string{
		"Deployment": o.deployment.Spec.Selector.MatchLabels, "Service": o.service.Spec.Selector,
		"PodDisruptionBudget": o.budget.Spec.Selector.MatchLabels, "NetworkPolicy": o.policy.Spec.PodSelector.MatchLabels,
	} {
		p.unless(labels.SelectorFromSet(selector).Matches(labels.Set(pod.Labels)) && len(selector) > 0, "%s: does not select the pods", name)
	}
	gate, backend := container(pod.Spec, "gate"), container(pod.Spec, "backend")
	if gate == nil || backend == nil {
		return errors.Join(append(p, errors.New("there is no gate or no backend"))...)
	}
	for _, c := range []*corev1.Container{gate, backend} {
		p.unless(strings.Contains(c.Image, "/") && strings.Contains(c.Image, ":"), "%s: the image %s has no registry or tag", c.Name, c.Image)
	}
	checkGate(&p, gate, pod.Spec, o)
	checkTimes(&p, gate, backend, pod.Spec, o.config)
	checkPorts(&p, gate, o)
	return errors.Join(p...)
}

func container(pod corev1.PodSpec, name string) *corev1.Container {
	for i := range pod.Containers {
		if pod.Containers[i].Name == name {
			return &pod.Containers[i]
		}
	}
	return nil
}

// checkGate wants the container as the image is: nobody, with nothing to write
// to but a volume.
func checkGate(p *problems, gate *corev1.Container, pod corev1.PodSpec, o objects) {
	s := gate.SecurityContext
	p.unless(s != nil && *s.RunAsNonRoot && *s.RunAsUser == nobody && *s.ReadOnlyRootFilesystem && !*s.AllowPrivilegeEscalation &&
		slices.Contains(s.Capabilities.Drop, "ALL") && s.SeccompProfile.Type == corev1.SeccompProfileTypeRuntimeDefault, "the gate may do too much: %v", s)
	p.unless(!*pod.AutomountServiceAccountToken, "a service account's token is mounted")
	p.unless(len(gate.EnvFrom) == 1 && gate.EnvFrom[0].ConfigMapRef.Name == o.config.Name, "the gate's variables are not those of the ConfigMap")
	for _, mount := range gate.VolumeMounts {
		p.unless(slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == mount.Name }), "there is no volume %s", mount.Name)
	}
	request, limit := gate.Resources.Requests.Memory(), gate.Resources.Limits.Memory()
	p.unless(!limit.IsZero() && request.Cmp(*limit) <= 0, "memory: %s requested, at most %s", request, limit)
	// 10 MiB, 15 KiB for each of 10,000 sockets; the program's file comes on top.
	p.unless(limit.Value() >= 10<<20+10_000*15<<10+60<<20, "memory: 10,000 sockets do not fit")
}

// checkTimes wants everybody to have the time that stopping takes.
func checkTimes(p *problems, gate, backend *corev1.Container, pod corev1.PodSpec, config *corev1.ConfigMap) {
	spread, errSpread := time.ParseDuration(config.Data["WS_PROXY_DRAIN_SPREAD"])
	grace, errGrace := time.ParseDuration(config.Data["WS_PROXY_DRAIN_GRACE"])
	p.unless(errSpread == nil && errGrace == nil, "the times of the drain: %v %v", errSpread, errGrace)
	first, last := preStop(gate), preStop(backend)
	end := time.Duration(*pod.TerminationGracePeriodSeconds) * time.Second
	p.unless(first > 0, "SIGTERM comes while balancers still send handshakes")
	p.unless(first+stopping(spread, grace) <= end, "the gate needs %s to stop, and has %s", first+stopping(spread, grace), end)
	p.unless(last >= first+spread+grace+lastWords, "the backend ends after %s, while sockets are still drained", last)
	p.unless(last+5*time.Second <= end, "the backend has no time for itself")
}

func preStop(c *corev1.Container) time.Duration {
	if c.Lifecycle == nil || c.Lifecycle.PreStop == nil || c.Lifecycle.PreStop.Sleep == nil {
		return 0
	}
	return time.Duration(c.Lifecycle.PreStop.Sleep.Seconds) * time.Second
}

// checkPorts wants every port that is named to be one of the gate's, and none
// of them to lead past it.
func checkPorts(p *problems, gate *corev1.Container, o objects) {
	named := make(map[string]int32)
	for _, port := range gate.Ports {
		named[port.Name] = port.ContainerPort
	}
	for name, probe := range map[string]*corev1.Probe{"startup": gate.StartupProbe, "readiness": gate.ReadinessProbe, "liveness": gate.LivenessProbe} {
		p.unless(probe != nil && probe.HTTPGet != nil && probe.HTTPGet.Path == "/health" && named[probe.HTTPGet.Port.StrVal] == 8081, "%s: is not at /health", name)
	}
	for _, port := range o.service.Spec.Ports {
		p.unless(named[port.TargetPort.StrVal] == 8080, "the service leads to %s", port.TargetPort.String())
	}
	for _, rule := range o.policy.Spec.Ingress {
		for _, port := range rule.Ports {
			p.unless(named[port.Port.StrVal] != 0, "the network policy opens %s", port.Port)
		}
	}
	p.unless(len(o.policy.Spec.Ingress) > 0 && len(o.policy.Spec.PolicyTypes) > 0, "the network policy closes nothing")
	p.unless(o.config.Data["WS_PROXY_TO"] == "127.0.0.1:3000", "the backend is not in the pod")
}
