/* Connects to port 1234 of the host, says "hello" and prints the answer. */
#include <stdio.h>
#include <unistd.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
int main(void) {
    struct sockaddr_vm host = { .svm_family = AF_VSOCK, .svm_cid = 2, .svm_port = 1234 };
    char answer[32] = { 0 };
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&host, sizeof host) < 0) { perror("connect"); return 1; }
    if (write(fd, "hello", 5) != 5 || read(fd, answer, sizeof answer - 1) <= 0) { perror("talk"); return 1; }
    return puts(answer) < 0;
}
