/* A server that is quicker than those who ask it: one thread, epoll, "ok" to every request, for `make bench-load`.
 * bench_http [PORT] prints the port it listens on (0 takes a free one) and serves until it is killed. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define KEEP "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n"
#define CLOSE "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n"

static void answer(int client)
{
	static char head[16384]; /* a request of these peers comes in one piece */
	ssize_t size = recv(client, head, sizeof(head) - 1, 0);

	if (size <= 0) {
		close(client);
		return;
	}
	head[size] = 0;
	if (strcasestr(head, "connection: close")) {
		send(client, CLOSE, sizeof(CLOSE) - 1, MSG_NOSIGNAL);
		close(client);
	} else if (strstr(head, "\r\n\r\n")) {
		send(client, KEEP, sizeof(KEEP) - 1, MSG_NOSIGNAL);
	}
}

int main(int argc, char **argv)
{
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), poll = epoll_create1(0), on = 1;
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(argc > 1 ? atoi(argv[1]) : 0)};
	socklen_t length = sizeof(at);
	struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[256];

	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (struct sockaddr *)&at, length) || listen(listener, 4096)) {
		perror("bench_http");
		return 1;
	}
	getsockname(listener, (struct sockaddr *)&at, &length);
	printf("%d\n", ntohs(at.sin_port));
	fflush(stdout);
	epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
	for (;;) {
		int ready = epoll_wait(poll, events, 256, -1);

		for (int i = 0; i < ready; i++) {
			int client = events[i].data.fd;

			if (client != listener) {
				answer(client);
				continue;
			}
			while ((client = accept(listener, NULL, NULL)) >= 0) {
				event.data.fd = client;
				epoll_ctl(poll, EPOLL_CTL_ADD, client, &event);
			}
		}
	}
}
