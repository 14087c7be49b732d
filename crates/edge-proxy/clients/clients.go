// The client of Go's standard library. `clients HTTP HTTPS CA h2|http/1.1`.
package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"strings"
	"sync"
	"time"
)

var failed = 0

func check(name string, run func() error) {
	if err := run(); err != nil {
		failed++
		fmt.Printf("FAILED go: %s: %v\n", name, err)
		return
	}
	fmt.Printf("ok go: %s\n", name)
}

func equal[T comparable](wanted, got T) error {
	if wanted != got {
		return fmt.Errorf("wanted %v, got %v", wanted, got)
	}
	return nil
}

func pattern(length int) []byte {
	all := make([]byte, length)
	for i := range all {
		all[i] = byte(i % 251)
	}
	return all
}

func send(client *http.Client, request *http.Request) (*http.Response, []byte, error) {
	answer, err := client.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return answer, body, err
}

func get(client *http.Client, url string) (*http.Response, []byte, error) {
	request, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return nil, nil, err
	}
	return send(client, request)
}

// A body of unknown length.
type unsized struct{ io.Reader }

func all(client *http.Client, base string, proto string) {
	of := proto + " " + strings.SplitN(base, ":", 2)[0] + " "
	check(of+"GET, its version and headers", func() error {
		answer, body, err := get(client, base+"/bytes/200000")
		if err != nil {
			return err
		}
		return errors.Join(equal(proto, answer.Proto), equal(200, answer.StatusCode), equal(true, bytes.Equal(pattern(200000), body)),
			equal("a=1; Path=/ b=2", strings.Join(answer.Header.Values("Set-Cookie"), " ")), equal("as written", answer.Header.Get("X-Lower-Case")))
	})
	check(of+"connections are used again", func() error {
		for i := 0; i < 3; i++ {
			request, _ := http.NewRequest("GET", base+"/bytes/10", nil)
			var reused bool
			trace := httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { reused = info.Reused }}
			if _, _, err := send(client, request.WithContext(httptrace.WithClientTrace(request.Context(), &trace))); err != nil {
				return err
			}
			if i > 0 && !reused {
				return errors.New("a new connection")
			}
		}
		return nil
	})
	check(of+"100-continue is waited for, and the body goes", func() error {
		request, _ := http.NewRequest("POST", base+"/echo", bytes.NewReader(pattern(50000)))
		request.Header.Set("Expect", "100-continue")
		waited, got := false, false
		trace := httptrace.ClientTrace{Wait100Continue: func() { waited = true }, Got100Continue: func() { got = true }}
		_, body, err := send(client, request.WithContext(httptrace.WithClientTrace(request.Context(), &trace)))
		if err != nil {
			return err
		}
		return errors.Join(equal(true, waited), equal(true, got), equal(true, bytes.Equal(pattern(50000), body)))
	})
	check(of+"103 before the answer", func() error {
		request, _ := http.NewRequest("GET", base+"/hints", nil)
		link := ""
		trace := httptrace.ClientTrace{Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			link += fmt.Sprint(code, " ", header.Get("Link"))
			return nil
		}}
		_, body, err := send(client, request.WithContext(httptrace.WithClientTrace(request.Context(), &trace)))
		if err != nil {
			return err
		}
		return errors.Join(equal("103 </a.css>; rel=preload", link), equal("after the hints", string(body)))
	})
	check(of+"trailers of the answer", func() error {
		answer, body, err := get(client, base+"/trailers")
		if err != nil {
			return err
		}
		return errors.Join(equal("with a trailer", string(body)), equal("4711", answer.Trailer.Get("X-Sum")))
	})
	check(of+"trailers of the request", func() error {
		request, _ := http.NewRequest("POST", base+"/trailers-in", unsized{bytes.NewReader(pattern(1000))})
		request.Trailer = http.Header{"X-Check": {"0815"}}
		_, body, err := send(client, request)
		if err != nil {
			return err
		}
		var said struct {
			Body     int
			Trailers [][2]string
		}
		if err := json.Unmarshal(body, &said); err != nil {
			return err
		}
		for i := range said.Trailers {
			said.Trailers[i][0] = strings.ToLower(said.Trailers[i][0])
		}
		return errors.Join(equal(1000, said.Body), equal("[[x-check 0815]]", fmt.Sprint(said.Trailers)))
	})
	check(of+"a body of unknown length, both ways at once", func() error {
		reader, writer := io.Pipe()
		request, _ := http.NewRequest("POST", base+"/stream", reader)
		go writer.Write([]byte("first"))
		answer, err := client.Do(request)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		first := make([]byte, 5)
		if _, err := io.ReadFull(answer.Body, first); err != nil {
			return err
		}
		if err := equal("first", string(first)); err != nil {
			return err
		}
		go func() {
			writer.Write([]byte("second"))
			writer.Close()
		}()
		rest, err := io.ReadAll(answer.Body)
		if err != nil {
			return err
		}
		return equal("second", string(rest))
	})
	check(of+"an answer that is not read to its end, then others", func() error {
		for i := 0; i < 20; i++ {
			answer, err := client.Get(base + "/bytes/5000000")
			if err != nil {
				return err
			}
			io.ReadFull(answer.Body, make([]byte, 1000))
			answer.Body.Close()
		}
		_, body, err := get(client, base+"/bytes/1000")
		if err != nil {
			return err
		}
		return equal(true, bytes.Equal(pattern(1000), body))
	})
	check(of+"an early 413 to a large upload", func() error {
		request, _ := http.NewRequest("POST", base+"/refuse", bytes.NewReader(make([]byte, 8<<20)))
		answer, body, err := send(client, request)
		if err != nil {
			return err
		}
		return errors.Join(equal(413, answer.StatusCode), equal("too much", string(body)))
	})
	check(of+"a cancelled request, then another", func() error {
		short := *client
		short.Timeout = 200 * time.Millisecond
		if _, _, err := get(&short, base+"/slow/2000"); err == nil {
			return errors.New("it was not cancelled")
		}
		_, body, err := get(client, base+"/slow/1")
		if err != nil {
			return err
		}
		return equal("slow", string(body))
	})
	check(of+"a hundred requests at once", func() error {
		var group sync.WaitGroup
		failures := make(chan error, 100)
		for i := 0; i < 100; i++ {
			group.Add(1)
			go func() {
				defer group.Done()
				_, body, err := get(client, fmt.Sprintf("%s/bytes/%d", base, 2000+i))
				if err == nil {
					err = equal(true, bytes.Equal(pattern(2000+i), body))
				}
				failures <- err
			}()
		}
		group.Wait()
		close(failures)
		for err := range failures {
			if err != nil {
				return err
			}
		}
		return nil
	})
	check(of+"a redirect is followed", func() error {
		_, body, err := get(client, base+"/status/307")
		if err != nil {
			return err
		}
		return equal(true, bytes.Equal(pattern(10), body))
	})
}

func main() {
	ca, err := os.ReadFile(os.Args[3])
	if err != nil {
		panic(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client := func(h2 bool) *http.Client {
		transport := http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: h2,
			ExpectContinueTimeout: 5 * time.Second, MaxIdleConnsPerHost: 100,
		}
		return &http.Client{Transport: &transport, Timeout: 20 * time.Second}
	}
	all(client(false), os.Args[1], "HTTP/1.1")
	all(client(false), os.Args[2], "HTTP/1.1")
	if os.Args[4] == "h2" {
		all(client(true), os.Args[2], "HTTP/2.0")
	} else {
		fmt.Println("skipped go: HTTP/2.0: the edge does not offer it")
	}
	if failed > 0 {
		os.Exit(1)
	}
}
