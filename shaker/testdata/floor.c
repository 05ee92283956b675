// The lower limit for BenchmarkFloor and BenchmarkTruth: a program of one thread that makes the
// system calls of a handshake and nothing else.
//
//	floor ADDRESS PORT HANDSHAKES AT_ONCE [PER_SECOND]
//
// AT_ONCE is how many handshakes run concurrently. If it is 0, the handshakes run one by one, 10 ms
// apart, and the program prints a line for each: the RTT and the time from SYN to SYN-ACK, in
// nanoseconds.
//
// With PER_SECOND, there is a burst of handshakes every 2 ms, as many as make that rate, like those of
// Repetitions.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void check(int result, const char *call) {
	if (result < 0) {
		perror(call);
		exit(1);
	}
}

static int open_socket(void) {
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
	check(fd, "socket");
	int off = 0;
	check(setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &off, sizeof off), "TCP_QUICKACK");
	struct linger reset = {.l_onoff = 1, .l_linger = 0};
	check(setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset), "SO_LINGER");
	return fd;
}

static void start(int epoll, int fd, const struct sockaddr_in *target) {
	if (connect(fd, (const struct sockaddr *)target, sizeof *target) < 0 && errno != EINPROGRESS)
		check(-1, "connect");
	struct epoll_event event = {.events = EPOLLOUT, .data.fd = fd};
	check(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
}

// end closes an open connection and returns its RTT in microseconds.
static unsigned end(int fd) {
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
	return info.tcpi_rtt;
}

static long long now(void) {
	struct timespec time;
	check(clock_gettime(CLOCK_MONOTONIC, &time), "clock_gettime");
	return 1000000000LL * time.tv_sec + time.tv_nsec;
}

static void one_by_one(int epoll, const struct sockaddr_in *target, int handshakes) {
	for (; handshakes > 0; handshakes--) {
		usleep(10000);
		int fd = open_socket();
		long long sent = now();
		start(epoll, fd, target);
		struct epoll_event event;
		check(epoll_wait(epoll, &event, 1, -1), "epoll_wait");
		long long seen = now();
		printf("%lld %lld\n", 1000LL * end(fd), seen - sent);
	}
}

static void at_once(int epoll, const struct sockaddr_in *target, int left, int most) {
	int running = 0;
	struct epoll_event events[256];
	while (left > 0 || running > 0) {
		for (; left > 0 && running < most; left--, running++)
			start(epoll, open_socket(), target);
		int n = epoll_wait(epoll, events, 256, -1);
		check(n, "epoll_wait");
		for (int i = 0; i < n; i++, running--)
			end(events[i].data.fd);
	}
}

static void paced(int epoll, const struct sockaddr_in *target, int left, int most, int per_second) {
	long long next = now();
	for (int burst = per_second / 500; left > 0; left -= burst) {
		next += 2000000;
		struct timespec at = {.tv_sec = next / 1000000000, .tv_nsec = next % 1000000000};
		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR)
			;
		at_once(epoll, target, burst, most);
	}
}

int main(int argc, char **argv) {
	if (argc != 5 && argc != 6)
		return 2;
	struct sockaddr_in target = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
	if (inet_pton(AF_INET, argv[1], &target.sin_addr) != 1)
		return 2;
	int handshakes = atoi(argv[3]), most = atoi(argv[4]);
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	check(epoll, "epoll_create1");
	if (argc == 6)
		paced(epoll, &target, handshakes, most, atoi(argv[5]));
	else if (most == 0)
		one_by_one(epoll, &target, handshakes);
	else
		at_once(epoll, &target, handshakes, most);
	return 0;
}
