/*
 * stream listen|connect ADDRESS PORT send|receive MIB: one end of a TCP stream. The receiver closes once it has all, which is
 * the end for both; the listener prints the seconds from the first byte on.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CHECK(expression)                                                                                              \
  ({                                                                                                                   \
    long check_result = (long)(expression);                                                                            \
    if (check_result == -1) {                                                                                          \
      perror(#expression);                                                                                             \
      exit(1);                                                                                                         \
    }                                                                                                                  \
    check_result;                                                                                                      \
  })

static char buffer[128 << 10];

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
  if (argc != 6) return 2;
  int listens = strcmp(argv[1], "listen") == 0, sends = strcmp(argv[4], "send") == 0, one = 1;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[3]))};
  if (inet_pton(AF_INET, argv[2], &address.sin_addr) != 1) return 2;
  int fd = CHECK(socket(AF_INET, SOCK_STREAM, 0));
  if (listens) {
    CHECK(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one));
    CHECK(bind(fd, (struct sockaddr *)&address, sizeof address));
    CHECK(listen(fd, 1));
    fd = CHECK(accept(fd, NULL, NULL));
  } else {
    CHECK(connect(fd, (struct sockaddr *)&address, sizeof address));
  }
  double start = now();
  long left = atol(argv[5]) << 20;
  while (left > 0) {
    size_t most = left < (long)sizeof buffer ? (size_t)left : sizeof buffer;
    long count = sends ? CHECK(write(fd, buffer, most)) : CHECK(read(fd, buffer, most));
    if (count == 0) return 1;
    left -= count;
  }
  if (sends && read(fd, buffer, 1) != 0) return 1;
  if (listens) printf("%f\n", now() - start);
  return 0;
}
