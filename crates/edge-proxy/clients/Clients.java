import java.io.InputStream;
import java.io.OutputStream;
import java.net.HttpURLConnection;
import java.net.URI;
import java.net.URL;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.net.http.WebSocket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.time.Duration;
import java.util.Arrays;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.TimeUnit;
import javax.net.ssl.HttpsURLConnection;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

/** Java's own clients. By HTTP, HttpClient offers h2c with each first request, unasked. `Clients HTTP HTTPS CA h2|http/1.1`. */
public final class Clients {
    interface Check {
        void run() throws Exception;
    }

    static int failed;

    static void check(String name, Check check) {
        try {
            check.run();
            System.out.println("ok java: " + name);
        } catch (Throwable error) {
            failed++;
            System.out.println("FAILED java: " + name + ": " + error);
        }
    }

    static void equal(Object wanted, Object got) {
        if (!wanted.equals(got)) {
            throw new AssertionError("wanted " + wanted + ", got " + got);
        }
    }

    static byte[] pattern(int length) {
        byte[] bytes = new byte[length];
        for (int i = 0; i < length; i++) {
            bytes[i] = (byte) (i % 251);
        }
        return bytes;
    }

    static SSLContext trusting(String ca) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        try (InputStream file = Files.newInputStream(Path.of(ca))) {
            store.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(file));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(store);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, trust.getTrustManagers(), null);
        return context;
    }

    static void all(HttpClient client, String base, HttpClient.Version version) {
        String of = base.substring(0, base.indexOf(':')) + " HttpClient ";
        check(of + "GET and its version", () -> {
            HttpResponse<byte[]> got = client.send(request(base, "/bytes/100000").build(), BodyHandlers.ofByteArray());
            equal(200, got.statusCode());
            equal(version, got.version());
            equal(true, Arrays.equals(pattern(100000), got.body()));
            equal(java.util.List.of("a=1; Path=/", "b=2"), got.headers().allValues("set-cookie"));
        });
        check(of + "POST with a body, first of its client", () -> {
            byte[] sent = pattern(300000);
            HttpRequest post = request(base, "/echo").POST(BodyPublishers.ofByteArray(sent)).build();
            HttpResponse<byte[]> got = client.send(post, BodyHandlers.ofByteArray());
            equal(200, got.statusCode());
            equal("POST", got.headers().firstValue("x-method").orElse(""));
            equal(true, Arrays.equals(sent, got.body()));
        });
        check(of + "POST in chunks", () -> {
            byte[] sent = pattern(70000);
            HttpRequest post = request(base, "/echo")
                    .POST(BodyPublishers.ofInputStream(() -> new java.io.ByteArrayInputStream(sent))).build();
            equal(true, Arrays.equals(sent, client.send(post, BodyHandlers.ofByteArray()).body()));
        });
        check(of + "Expect: 100-continue", () -> {
            HttpRequest post = request(base, "/echo").expectContinue(true).POST(BodyPublishers.ofString("go on")).build();
            HttpResponse<String> got = client.send(post, BodyHandlers.ofString());
            equal(200, got.statusCode());
            equal("go on", got.body());
        });
        check(of + "no offer of h2c reaches the app", () -> {
            String head = client.send(request(base, "/head").build(), BodyHandlers.ofString()).body().toLowerCase();
            equal(false, head.contains("upgrade"));
            equal(false, head.contains("http2-settings"));
        });
        check(of + "HEAD, 204 and 304", () -> {
            HttpRequest head = request(base, "/bytes/5000").method("HEAD", BodyPublishers.noBody()).build();
            HttpResponse<byte[]> got = client.send(head, BodyHandlers.ofByteArray());
            equal("5000", got.headers().firstValue("content-length").orElse(""));
            equal(0, got.body().length);
            for (int status : new int[] {204, 304}) {
                HttpRequest get = request(base, "/status/" + status).build();
                equal(status, client.send(get, BodyHandlers.ofByteArray()).statusCode());
            }
        });
        check(of + "fifty requests at once", () -> {
            CompletableFuture<?>[] all = new CompletableFuture<?>[50];
            for (int i = 0; i < all.length; i++) {
                int length = 1000 + i;
                all[i] = client.sendAsync(request(base, "/bytes/" + length).build(), BodyHandlers.ofByteArray())
                        .thenAccept(got -> equal(true, Arrays.equals(pattern(length), got.body())));
            }
            CompletableFuture.allOf(all).get(20, TimeUnit.SECONDS);
        });
        check(of + "a WebSocket", () -> {
            CompletableFuture<String> echoed = new CompletableFuture<>();
            WebSocket.Listener listener = new WebSocket.Listener() {
                @Override
                public CompletionStage<?> onText(WebSocket socket, CharSequence text, boolean last) {
                    echoed.complete(text.toString());
                    return null;
                }
            };
            WebSocket socket = client.newWebSocketBuilder()
                    .buildAsync(URI.create(base.replace("http", "ws") + "/ws"), listener).get(10, TimeUnit.SECONDS);
            socket.sendText("from Java", true);
            equal("from Java", echoed.get(10, TimeUnit.SECONDS));
            socket.sendClose(WebSocket.NORMAL_CLOSURE, "").get(10, TimeUnit.SECONDS);
        });
    }

    static HttpRequest.Builder request(String base, String path) {
        return HttpRequest.newBuilder(URI.create(base + path)).timeout(Duration.ofSeconds(20));
    }

    static void connections(String base) {
        String of = base.substring(0, base.indexOf(':')) + " HttpURLConnection ";
        check(of + "GET, twice on one connection", () -> {
            for (int i = 0; i < 2; i++) {
                HttpURLConnection got = (HttpURLConnection) new URL(base + "/bytes/4000").openConnection();
                equal(200, got.getResponseCode());
                try (InputStream body = got.getInputStream()) {
                    equal(true, Arrays.equals(pattern(4000), body.readAllBytes()));
                }
            }
        });
        check(of + "POST in chunks", () -> {
            byte[] sent = pattern(90000);
            HttpURLConnection post = (HttpURLConnection) new URL(base + "/echo").openConnection();
            post.setDoOutput(true);
            post.setChunkedStreamingMode(4096);
            try (OutputStream body = post.getOutputStream()) {
                body.write(sent);
            }
            equal(200, post.getResponseCode());
            try (InputStream body = post.getInputStream()) {
                equal(true, Arrays.equals(sent, body.readAllBytes()));
            }
        });
        check(of + "a status of failure has its body", () -> {
            HttpURLConnection got = (HttpURLConnection) new URL(base + "/status/503").openConnection();
            equal(503, got.getResponseCode());
            equal("body of the status", new String(got.getErrorStream().readAllBytes()));
        });
    }

    public static void main(String[] arguments) throws Exception {
        SSLContext trust = trusting(arguments[2]);
        HttpsURLConnection.setDefaultSSLSocketFactory(trust.getSocketFactory());
        HttpClient.Version tls = arguments[3].equals("h2") ? HttpClient.Version.HTTP_2 : HttpClient.Version.HTTP_1_1;
        all(HttpClient.newHttpClient(), arguments[0], HttpClient.Version.HTTP_1_1);
        all(HttpClient.newBuilder().sslContext(trust).build(), arguments[1], tls);
        check("http HttpClient a POST that offers h2c, on a connection of its own", () -> {
            // The offer comes with a body. It is dropped, and the body is read.
            HttpRequest post = request(arguments[0], "/echo").POST(BodyPublishers.ofString("with an offer")).build();
            equal("with an offer", HttpClient.newHttpClient().send(post, BodyHandlers.ofString()).body());
        });
        connections(arguments[0]);
        connections(arguments[1]);
        // The threads of clients would keep it waiting.
        System.exit(failed == 0 ? 0 : 1);
    }
}
