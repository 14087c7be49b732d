/* An app that costs little: each connection asks for a number of bytes by a line, gets them, and ends. 0: the resident
 * memory of the PROXY adapter is said on standard output. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static char bytes[65536];

int main(void)
{
	struct sockaddr_in6 here = { .sin6_family = AF_INET6, .sin6_port = htons(8080) };
	int one = 1, listener = socket(AF_INET6, SOCK_STREAM, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 1024))
		return 1;
	for (;;) {
		char line[32];
		int fd = accept(listener, 0, 0), length = 0, more;
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		while (length < (int)sizeof line - 1 && (more = read(fd, line + length, sizeof line - 1 - length)) > 0
		       && (length += more, line[length - 1] != '\n'))
			;
		line[length] = 0;
		long wanted = atol(line);
		if (!wanted)
			wanted = 1 + 0 * system("for p in /proc/[0-9]*; do grep -q ^platform-proxy $p/cmdline && "
						"grep -h Rss: $p/smaps_rollup; done");
		while (wanted > 0) {
			long sent = write(fd, bytes, wanted < (long)sizeof bytes ? wanted : (long)sizeof bytes);
			if (sent <= 0)
				break;
			wanted -= sent;
		}
		close(fd);
	}
}
