/* The floor: the least that a proxy for HTTP/1 can do. Two workers, one epoll each; a connection of the load is joined with one to the
 * application, and what is read on one is written to the other: two reads and two writes a request. It parses nothing, checks nothing
 * and gives up on a peer that does not take what it is given: nobody should use it as a proxy.
 *
 * usage: floor LISTEN-ADDRESS LISTEN-PORT TO-ADDRESS TO-PORT */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WORKERS = 2, MAXFD = 65536 };
static int other[MAXFD]; /* the other end of each connection, 0 for none */
static char buf[1 << 16];

static void die(const char *what) {
	perror(what);
	exit(1);
}

static struct sockaddr_in parse(char *addr, char *port) {
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
	if (!inet_aton(addr, &a.sin_addr)) die(addr);
	return a;
}

static void watch(int ep, int fd) {
	struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
	if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e)) die("epoll_ctl");
}

static void take(int ep, int ln, struct sockaddr_in *to) {
	int one = 1, c = accept4(ln, NULL, NULL, SOCK_NONBLOCK);
	if (c < 0) return;
	int up = socket(AF_INET, SOCK_STREAM, 0);
	if (up < 0 || up >= MAXFD || c >= MAXFD || connect(up, (struct sockaddr *)to, sizeof *to)) die("connect");
	fcntl(up, F_SETFL, O_NONBLOCK);
	setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	setsockopt(up, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	other[c] = up;
	other[up] = c;
	watch(ep, c);
	watch(ep, up);
}

static void end(int fd) {
	close(other[fd]);
	close(fd);
	other[other[fd]] = 0;
	other[fd] = 0;
}

static void relay(int fd) {
	ssize_t n = read(fd, buf, sizeof buf);
	if (n < 0 && errno == EAGAIN) return;
	if (n <= 0) {
		end(fd);
		return;
	}
	for (ssize_t at = 0; at < n;) {
		ssize_t w = write(other[fd], buf + at, n - at);
		if (w < 0 && errno == EAGAIN) continue; /* a large body: waits for the reader */
		if (w < 0) {
			end(fd);
			return;
		}
		at += w;
	}
}

static void work(struct sockaddr_in *at, struct sockaddr_in *to) {
	int one = 1, ln = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), ep = epoll_create1(0);
	setsockopt(ln, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	setsockopt(ln, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
	if (ep < 0 || bind(ln, (struct sockaddr *)at, sizeof *at) || listen(ln, 4096)) die("listen");
	watch(ep, ln);
	for (;;) {
		struct epoll_event e[64];
		int n = epoll_wait(ep, e, 64, -1);
		for (int i = 0; i < n; i++) {
			if (e[i].data.fd == ln) take(ep, ln, to);
			else if (other[e[i].data.fd]) relay(e[i].data.fd);
		}
	}
}

int main(int argc, char **argv) {
	if (argc != 5) {
		fprintf(stderr, "usage: floor LISTEN-ADDRESS LISTEN-PORT TO-ADDRESS TO-PORT\n");
		return 2;
	}
	struct sockaddr_in at = parse(argv[1], argv[2]), to = parse(argv[3], argv[4]);
	signal(SIGPIPE, SIG_IGN);
	for (int i = 0; i < WORKERS; i++) {
		pid_t p = fork();
		if (p < 0) die("fork");
		if (p == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			work(&at, &to);
		}
	}
	wait(NULL); /* for a worker that fails */
	return 1;
}
