// The floor that BenchmarkFloor compares with: the system calls of the handshake and nothing
// else, in one thread.
//
//	floor ADDRESS PORT HANDSHAKES AT_ONCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static void check(int result, const char *call) {
	if (result < 0) {
		perror(call);
		exit(1);
	}
}

static void start(int epoll, const struct sockaddr_in *target) {
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
	check(fd, "socket");
	int off = 0;
	check(setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &off, sizeof off), "TCP_QUICKACK");
	struct linger reset = {.l_onoff = 1, .l_linger = 0};
	check(setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset), "SO_LINGER");
	if (connect(fd, (const struct sockaddr *)target, sizeof *target) < 0 && errno != EINPROGRESS)
		check(-1, "connect");
	struct epoll_event event = {.events = EPOLLOUT, .data.fd = fd};
	check(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
}

static void end(int fd) {
	int error;
	socklen_t size = sizeof error;
	check(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size), "SO_ERROR");
	struct tcp_info info;
	size = sizeof info;
	check(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size), "TCP_INFO");
	if (error != 0 || info.tcpi_state != TCP_ESTABLISHED) {
		fprintf(stderr, "error %d, state %d\n", error, info.tcpi_state);
		exit(1);
	}
	close(fd);
}

int main(int argc, char **argv) {
	if (argc != 5)
		return 2;
	struct sockaddr_in target = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
	if (inet_pton(AF_INET, argv[1], &target.sin_addr) != 1)
		return 2;
	int left = atoi(argv[3]), most = atoi(argv[4]), running = 0;
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	check(epoll, "epoll_create1");
	struct epoll_event events[256];
	while (left > 0 || running > 0) {
		for (; left > 0 && running < most; left--, running++)
			start(epoll, &target);
		int n = epoll_wait(epoll, events, 256, -1);
		check(n, "epoll_wait");
		for (int i = 0; i < n; i++, running--)
			end(events[i].data.fd);
	}
	return 0;
}
