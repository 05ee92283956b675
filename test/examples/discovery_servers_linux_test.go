package examples

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// serve starts an HTTP server, which runs until the test ends, and returns its URL.
func serve(t *testing.T, handler http.Handler) string {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(func() {
		server.CloseClientConnections() // the watches of Prometheus
		server.Close()
	})
	return server.URL
}

// writeJSON writes a response.
func writeJSON(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(value)
}

// serveKubernetes starts a server that answers list and watch requests for objects, which never change, as the API
// server of Kubernetes does. The objects are YAML, by the path of their list.
func serveKubernetes(t *testing.T, objects map[string]string) string {
	t.Helper()
	kinds := map[string]string{"services": "ServiceList", "pods": "PodList", "ingresses": "IngressList"}
	mux := http.NewServeMux()
	for path, text := range objects {
		directory, plural := filepath.Split(path)
		version := strings.TrimPrefix(strings.TrimPrefix(strings.Trim(directory, "/"), "apis/"), "api/")
		version, _, _ = strings.Cut(version, "/namespaces/")
		var items []struct {
			Metadata struct {
				Name        string            `json:"name"`
				Namespace   string            `json:"namespace"`
				Labels      map[string]string `json:"labels,omitempty"`
				Annotations map[string]string `json:"annotations,omitempty"`
			} `json:"metadata"`
			Spec   any `json:"spec,omitempty"`
			Status any `json:"status,omitempty"`
		}
		if err := yaml.UnmarshalStrict([]byte(text), &items); err != nil {
			t.Fatalf("objects of %s: %v", path, err)
		}
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			switch query := r.URL.Query(); {
			case query.Get("sendInitialEvents") == "true": // an API server without streaming lists
				w.WriteHeader(http.StatusUnprocessableEntity)
				writeJSON(w, map[string]any{
					"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": 422,
				})
			case query.Get("watch") != "":
				w.Header().Set("Content-Type", "application/json")
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			default:
				selector, err := labels.Parse(query.Get("labelSelector"))
				if err != nil {
					http.Error(w, err.Error(), http.StatusBadRequest)
					return
				}
				selected := []any{}
				for _, item := range items {
					if selector.Matches(labels.Set(item.Metadata.Labels)) {
						selected = append(selected, item)
					}
				}
				writeJSON(w, map[string]any{
					"kind": kinds[plural], "apiVersion": version,
					"metadata": map[string]string{"resourceVersion": "1"}, "items": selected,
				})
			}
		})
	}
	return serve(t, mux)
}

// A consulService is an instance of a service in the catalog of Consul.
type consulService struct {
	name, node, nodeAddress, address string
	port                             int
	tags                             []string
	meta                             map[string]string
}

// serveConsul starts a server that answers the requests of Prometheus as an agent of Consul does. The catalog never
// changes, so that a blocking query blocks.
func serveConsul(t *testing.T, services []consulService) string {
	t.Helper()
	blocks := func(w http.ResponseWriter, r *http.Request) bool {
		if index := r.FormValue("index"); index != "" && index != "0" {
			<-r.Context().Done()
			return true
		}
		w.Header().Set("X-Consul-Index", "7")
		w.Header().Set("X-Consul-LastContact", "0")
		w.Header().Set("X-Consul-KnownLeader", "true")
		return false
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/agent/self", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, map[string]any{"Config": map[string]string{"Datacenter": "fra"}})
	})
	mux.HandleFunc("GET /v1/catalog/services", func(w http.ResponseWriter, r *http.Request) {
		if blocks(w, r) {
			return
		}
		tags := make(map[string][]string)
		for _, s := range services {
			tags[s.name] = append(tags[s.name], s.tags...)
		}
		writeJSON(w, tags)
	})
	mux.HandleFunc("GET /v1/health/service/{name}", func(w http.ResponseWriter, r *http.Request) {
		if blocks(w, r) {
			return
		}
		type object = map[string]any
		found := []object{}
		for _, s := range services {
			lacks := func(tag string) bool { return !slices.Contains(s.tags, tag) }
			if s.name == r.PathValue("name") && !slices.ContainsFunc(r.Form["tag"], lacks) {
				found = append(found, object{
					"Node": object{"Node": s.node, "Address": s.nodeAddress, "Datacenter": "fra"},
					"Service": object{
						"ID": s.name, "Service": s.name, "Address": s.address, "Port": s.port,
						"Tags": s.tags, "Meta": s.meta,
					},
					"Checks": []object{},
				})
			}
		}
		writeJSON(w, found)
	})
	return serve(t, mux)
}

// An ec2Instance is an EC2 instance.
type ec2Instance struct {
	address string // none if it is ""
	tags    map[string]string
}

// serveEC2 starts a server that answers the requests of Prometheus as the API of EC2 does, without filtering, and a
// function that returns the filters that were requested.
func serveEC2(t *testing.T, instances []ec2Instance) (url string, filters func() []string) {
	t.Helper()
	requested := make(chan []string, 100)
	const header = `<?xml version="1.0" encoding="UTF-8"?>` + "\n"
	const namespace = `xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>1</requestId>`
	url = serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "text/xml;charset=UTF-8")
		switch action := r.Form.Get("Action"); action {
		case "DescribeAvailabilityZones":
			fmt.Fprint(w, header, `<DescribeAvailabilityZonesResponse `, namespace, `<availabilityZoneInfo><item>`,
				`<zoneName>eu-central-1a</zoneName><zoneId>euc1-az2</zoneId>`,
				`</item></availabilityZoneInfo></DescribeAvailabilityZonesResponse>`)
		case "DescribeInstances":
			var names []string
			for i := 1; r.Form.Has(fmt.Sprintf("Filter.%d.Name", i)); i++ {
				names = append(names, r.Form.Get(fmt.Sprintf("Filter.%d.Name", i))+"="+
					r.Form.Get(fmt.Sprintf("Filter.%d.Value.1", i)))
			}
			select {
			case requested <- names:
			default:
			}
			fmt.Fprint(w, header, `<DescribeInstancesResponse `, namespace, `<reservationSet><item>`,
				`<reservationId>r-1</reservationId><ownerId>123456789012</ownerId><instancesSet>`)
			for i, instance := range instances {
				fmt.Fprintf(w, `<item><instanceId>i-%d</instanceId><imageId>ami-1</imageId>`+
					`<instanceState><code>16</code><name>running</name></instanceState><privateDnsName/>`+
					`<instanceType>t3.micro</instanceType><architecture>x86_64</architecture>`+
					`<placement><availabilityZone>eu-central-1a</availabilityZone></placement>`, i)
				if instance.address != "" {
					fmt.Fprintf(w, `<privateIpAddress>%s</privateIpAddress>`, instance.address)
				}
				fmt.Fprint(w, `<tagSet>`)
				for key, value := range instance.tags {
					fmt.Fprintf(w, `<item><key>%s</key><value>%s</value></item>`, key, value)
				}
				fmt.Fprint(w, `</tagSet></item>`)
			}
			fmt.Fprint(w, `</instancesSet></item></reservationSet></DescribeInstancesResponse>`)
		default:
			http.Error(w, "unknown action "+action, http.StatusBadRequest)
		}
	}))
	return url, func() []string { return <-requested }
}
