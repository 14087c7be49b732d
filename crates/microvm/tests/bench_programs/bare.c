/* The least an init can do: the mounts of platform-init's plan, in its order, and the app. No checks, no logs.
 * With TALK and NETWORK it also does what no init of ours can leave out: it asks the node first, and sets up the
 * network. With NATIVELY it leaves the memory controller alone, which is the machine's. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/ipv6.h>
#include <net/if.h>
#include <net/route.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

#ifndef ROOT_DISK
#define ROOT_DISK "/dev/vda"
#define SCRATCH_DISK "/dev/vdb"
#endif

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT, 0644);
	if (write(fd, text, strlen(text)) < 0)
		_exit(3);
	close(fd);
}

#ifdef TALK
static char answer[65536];

/* Says hello as the contract has it, and waits until a whole frame has come. */
static void ask_node(void)
{
	static const char body[] = "\0{\"contract\":2,\"channel\":\"control\",\"phase\":\"waiting\"}";
	unsigned length = sizeof body - 1;
	struct sockaddr_vm node = { .svm_family = AF_VSOCK, .svm_cid = 2, .svm_port = 1024 };
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char hello[128];
	memcpy(hello, &length, 4);
	memcpy(hello + 4, body, length);
	hello[4] = 1;
	if (connect(fd, (void *)&node, sizeof node) || write(fd, hello, length + 4) < 0)
		_exit(8);
	for (unsigned have = 0; have < 4 || have < 4 + *(unsigned *)answer;) {
		ssize_t got = read(fd, answer + have, sizeof answer - have);
		if (got <= 0)
			_exit(9);
		have += got;
	}
}
#endif

#ifdef NETWORK
static void network(void)
{
	struct ifreq eth0 = { .ifr_name = "eth0", .ifr_mtu = 1420 };
	struct in6_ifreq address = { .ifr6_prefixlen = 128 };
	struct in6_rtmsg route = { .rtmsg_metric = 1, .rtmsg_flags = RTF_UP | RTF_GATEWAY };
	int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	put("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0");
	put("/proc/sys/net/ipv6/conf/eth0/accept_ra", "0");
	ioctl(fd, SIOCSIFMTU, &eth0);
	eth0.ifr_flags = IFF_UP;
	ioctl(fd, SIOCSIFFLAGS, &eth0);
	address.ifr6_ifindex = route.rtmsg_ifindex = if_nametoindex("eth0");
	inet_pton(AF_INET6, "fd12:3456:789a:3:0:7:c000:2", &address.ifr6_addr);
	ioctl(fd, SIOCSIFADDR, &address);
	inet_pton(AF_INET6, "fe80::1", &route.rtmsg_gateway);
	ioctl(fd, SIOCADDRT, &route);
}
#endif

int main(void)
{
	mount("devtmpfs", "/dev", "devtmpfs", 0, "");
#ifdef TALK
	ask_node();
#endif
	mkdir("/lower", 0755);
	mkdir("/scratch", 0755);
	mkdir("/root", 0755);
	if (mount(ROOT_DISK, "/lower", "ext4", MS_RDONLY, "") ||
	    mount(SCRATCH_DISK, "/scratch", "ext4", 0, "barrier=0"))
		return 4;
	mkdir("/scratch/upper", 0755);
	mkdir("/scratch/work", 0755);
	if (mount("overlay", "/root", "overlay", 0,
		  "lowerdir=/lower,upperdir=/scratch/upper,workdir=/scratch/work,redirect_dir=on"))
		return 5;
	umount2("/dev", MNT_DETACH);
	umount2("/lower", MNT_DETACH);
	umount2("/scratch", MNT_DETACH);
	if (chdir("/root") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
		return 6;
	mkdir("/proc", 0755);
	mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
	mkdir("/sys", 0755);
	mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
	mkdir("/dev", 0755);
	mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "");
	mkdir("/dev/pts", 0755);
	mount("devpts", "/dev/pts", "devpts", MS_NOSUID, "gid=5,mode=620,ptmxmode=666");
	mkdir("/dev/shm", 0755);
	mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
	mkdir("/dev/mqueue", 0755);
	mount("mqueue", "/dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
	mkdir("/run", 0755);
	mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755");
	mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
	sethostname("bench", 5);
	mkdir("/etc", 0755);
	put("/etc/hosts", "::1 localhost\n");
	struct ifreq lo = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	ioctl(control, SIOCSIFFLAGS, &lo);
#ifdef NETWORK
	network();
#endif
#ifndef NATIVELY
	put("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	put("/sys/fs/cgroup/cgroup.subtree_control", "+pids +cpu");
#endif
	mkdir("/sys/fs/cgroup/app", 0755);
	execl("/bin/app", "app", NULL);
	return 7;
}
