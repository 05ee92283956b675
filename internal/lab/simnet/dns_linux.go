package simnet

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Names are the records of a DNS server: the addresses of each name, and its SRV records, such as
// "10 50 5432 db.example." with priority, weight, port and host.
type Names map[string][]string

// NewDNS starts a DNS server on UDP and TCP, which runs until the test ends, and returns the function with
// which a resolver connects to it. The server answers with the addresses of a name, if it knows the name,
// even if there is no address. For other names it answers NXDOMAIN. Labels of a name can change the answer.
// The server processes them from left to right, so that the answer for "truncated.silent.example" is
// truncated on UDP, and there is none on TCP:
//
//	silent     no answer
//	refused    REFUSED
//	broken     SERVFAIL
//	lame       no address, from a server that is neither authoritative nor recursive
//	truncated  on UDP, no address and the TC bit; on TCP, continue with the next label
//	garbage    send bytes that are not a DNS message, then continue
//	stray      send the answer with the ID of another query, then continue
//	other      send the answer to another question, then continue
//	80ms       wait for this time, then continue; any duration is possible
//
// A label with a final 4 or 6 applies only to queries for IPv4 or IPv6 addresses: "silent6.example" has no answer
// about its IPv6 addresses.
func NewDNS(t testing.TB, names Names) func(ctx context.Context, network, address string) (net.Conn, error) {
	t.Helper()
	return DialDNS(ServeDNS(t, "127.0.0.1:0", names))
}

// ServeDNS starts such a server at an address and returns the address. If the port is 0, the server listens on
// a free port, which the returned address contains.
func ServeDNS(t testing.TB, address string, names Names) string {
	t.Helper()
	onTCP, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	address = onTCP.Addr().String()
	onUDP, err := net.ListenPacket("udp", address)
	if err != nil {
		onTCP.Close()
		t.Fatal(err)
	}
	ctx := t.Context()
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			query := make([]byte, 512)
			n, client, err := onUDP.ReadFrom(query)
			if err != nil {
				return // the test is over
			}
			serving.Go(func() {
				names.answer(ctx, "udp", query[:n], func(message []byte) { onUDP.WriteTo(message, client) })
			})
		}
	})
	serving.Go(func() {
		for {
			conn, err := onTCP.Accept()
			if err != nil {
				return // the test is over
			}
			serving.Go(func() { names.serve(ctx, conn) })
		}
	})
	t.Cleanup(func() { onUDP.Close(); onTCP.Close(); serving.Wait() })
	return address
}

// DialDNS returns a function with which a resolver connects to the address instead of the servers in its
// configuration.
func DialDNS(address string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}
}

// serve answers one query on a TCP connection and waits until the client closes the connection.
func (n Names) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var length uint16
	if err := binary.Read(conn, binary.BigEndian, &length); err != nil {
		return
	}
	query := make([]byte, length)
	if _, err := io.ReadFull(conn, query); err != nil {
		return
	}
	n.answer(ctx, "tcp", query, func(message []byte) {
		conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...))
	})
	io.Copy(io.Discard, conn)
}

// answer sends the answer to a query, changed by the labels of the name in it.
func (n Names) answer(ctx context.Context, network string, query []byte, send func(message []byte)) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
		return
	}
	m.Header = dnsmessage.Header{ID: m.ID, Response: true, Authoritative: true, RecursionAvailable: true}
	m.Additionals = nil
	name := strings.TrimSuffix(m.Questions[0].Name.String(), ".")
	addrs, known := n[name]
	if !known {
		m.RCode = dnsmessage.RCodeNameError
	}
	withAddrs := m
	withAddrs.Answers = resources(m.Questions[0], addrs)
	other := "4"
	if m.Questions[0].Type == dnsmessage.TypeA {
		other = "6"
	}
	for label := range strings.SplitSeq(name, ".") {
		if strings.HasSuffix(label, other) {
			continue
		}
		switch label = strings.TrimRight(label, "46"); label {
		case "silent":
			return
		case "refused":
			m.RCode = dnsmessage.RCodeRefused
			send(pack(m))
			return
		case "broken":
			m.RCode = dnsmessage.RCodeServerFailure
			send(pack(m))
			return
		case "lame":
			m.RCode, m.Authoritative, m.RecursionAvailable = dnsmessage.RCodeSuccess, false, false
			send(pack(m))
			return
		case "truncated":
			if network == "udp" {
				m.Truncated = true
				send(pack(m))
				return
			}
		case "garbage":
			send([]byte("garbage"))
		case "stray":
			stray := withAddrs
			stray.ID++
			send(pack(stray))
		case "other":
			another := withAddrs
			another.Questions = []dnsmessage.Question{m.Questions[0]}
			another.Questions[0].Name = dnsmessage.MustNewName("another.example.")
			send(pack(another))
		default:
			delay, err := time.ParseDuration(label)
			if err != nil {
				continue // the label changes nothing
			}
			select {
			case <-time.After(delay):
			case <-ctx.Done():
				return
			}
		}
	}
	send(pack(withAddrs))
}

// resources returns the records of the type that the question asks for.
func resources(question dnsmessage.Question, records []string) (answers []dnsmessage.Resource) {
	header := dnsmessage.ResourceHeader{Name: question.Name, Class: dnsmessage.ClassINET, TTL: 60}
	for _, text := range records {
		if strings.Contains(text, " ") {
			if question.Type == dnsmessage.TypeSRV {
				var host string
				body := new(dnsmessage.SRVResource)
				if _, err := fmt.Sscan(text, &body.Priority, &body.Weight, &body.Port, &host); err != nil {
					panic(fmt.Sprintf("SRV record %q: %v", text, err))
				}
				body.Target = dnsmessage.MustNewName(host)
				answers = append(answers, dnsmessage.Resource{Header: header, Body: body})
			}
			continue
		}
		addr := netip.MustParseAddr(text)
		switch {
		case addr.Is4() && question.Type == dnsmessage.TypeA:
			answers = append(answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: addr.As4()}})
		case addr.Is6() && question.Type == dnsmessage.TypeAAAA:
			body := &dnsmessage.AAAAResource{AAAA: addr.As16()}
			answers = append(answers, dnsmessage.Resource{Header: header, Body: body})
		}
	}
	return answers
}

func pack(m dnsmessage.Message) []byte {
	packed, err := m.Pack()
	if err != nil {
		panic(err) // the message is complete, so this cannot happen
	}
	return packed
}
