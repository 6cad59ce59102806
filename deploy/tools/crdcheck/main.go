// Checks documents for the Prometheus operator against the operator's own types: a field that it does not know, a key
// twice or a value of another type is an error. Other kinds are passed over: a schema of Kubernetes' own knows them.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

func check(document []byte) (string, error) {
	var head struct{ APIVersion, Kind string }
	if err := yaml.Unmarshal(document, &head); err != nil {
		return "", err
	}
	if head.APIVersion != "monitoring.coreos.com/v1" {
		return "", nil
	}
	var into any
	switch head.Kind {
	case monitoring.ServiceMonitorsKind:
		into = &monitoring.ServiceMonitor{}
	case monitoring.PrometheusRuleKind:
		into = &monitoring.PrometheusRule{}
	default:
		return "", fmt.Errorf("%s: no type for this kind", head.Kind)
	}
	text, err := yaml.YAMLToJSONStrict(document)
	if err != nil {
		return head.Kind, err
	}
	// As the API server decodes: the standard library would take scrapeTimeOut for scrapeTimeout.
	unknown, err := json.UnmarshalStrict(text, into)
	return head.Kind, errors.Join(append(unknown, err)...)
}

func main() {
	failed := false
	for _, name := range os.Args[1:] {
		text, err := os.ReadFile(name)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		for _, document := range strings.Split(string(text), "\n---") {
			kind, err := check([]byte(document))
			if err != nil {
				fmt.Fprintf(os.Stderr, "%s: %s: %v\n", name, kind, err)
				failed = true
			} else if kind != "" {
				fmt.Printf("%s: %s is well-formed\n", name, kind)
			}
		}
	}
	if failed {
		os.Exit(1)
	}
}
