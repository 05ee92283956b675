package release

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/shaker-exporter/shaker_exporter/internal/lab"
	"github.com/shaker-exporter/shaker_exporter/internal/lab/process"
)

// slow also runs the tests of make packages-test, which prepares them: it installs a Debian and builds syft, which
// takes minutes the first time.
var slow = flag.Bool("slow", false, "run the tests of make packages-test")

func needSlow(t *testing.T) {
	t.Helper()
	if !*slow {
		t.Skip("a test of make packages-test")
	}
}

// debian returns the root directory of a minimal Debian with systemd, curl, rpm and OpenRC, which make packages-test
// makes.
func debian(t *testing.T) string {
	t.Helper()
	lab.NeedRoot(t)
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(cache, "shaker_exporter", "debian-bookworm")
	if _, err := os.Stat(root); err != nil {
		lab.Skip(t, "needs a Debian (make packages-test): %v", err)
	}
	return root
}

// A machine is a booted Debian in a container. Its changes are lost with it.
type machine struct {
	t   *testing.T
	pid int // of its systemd
}

// boot boots a machine that sees a directory as /mnt.
func boot(t *testing.T, dir string) *machine {
	t.Helper()
	root := debian(t)
	nspawn := lab.Program(t, "systemd-nspawn", "systemd-container")
	const join = `echo $$ >"$1"/cgroup.procs; shift; exec "$@"`
	container := process.Start(t, exec.Command("sh", "-ec", join, "sh", newCgroup(t), nspawn,
		"--quiet", "--directory="+root, "--volatile=overlay",
		"--private-network", "--register=no", "--keep-unit", fmt.Sprintf("--machine=shaker-%d", os.Getpid()),
		"--bind-ro="+dir+":/mnt", "--console=pipe", "--boot"))
	m := &machine{t: t}
	lab.Eventually(t, "systemd runs in the container", func() bool {
		if container.Ended() {
			lab.Skip(t, "needs a machine on which systemd-nspawn can boot a container: %s", container.Output())
		}
		children := fmt.Sprintf("/proc/%d/task/%d/children", container.PID(), container.PID())
		out, err := os.ReadFile(children)
		if err != nil || len(bytes.TrimSpace(out)) == 0 {
			return false
		}
		if _, err := fmt.Sscan(string(out), &m.pid); err != nil {
			return false
		}
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", m.pid))
		return err == nil && string(name) == "systemd\n"
	})
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := m.try("journalctl --no-pager --unit=shaker_exporter")
			t.Logf("the journal:\n%s", out)
		}
		syscall.Kill(m.pid, syscall.SIGKILL) // this kills all processes of the container
	})
	lab.Eventually(t, "the container has booted", func() bool {
		out, _ := m.try("systemctl is-system-running")
		return out == "running" || out == "degraded"
	})
	return m
}

// newCgroup returns the directory of a new control group below that of this process. It is removed after the test,
// with those that the container has made in it and, if the machine has control groups of version 1, beside it.
func newCgroup(t *testing.T) (dir string) {
	t.Helper()
	_, own, ok := strings.Cut("\n"+lab.Read(t, "/proc/self/cgroup"), "\n0::")
	if !ok {
		lab.Skip(t, "needs control groups of version 2")
	}
	own, _, _ = strings.Cut(own, "\n")
	mount := "/sys/fs/cgroup/unified"
	if _, err := os.Stat(mount); err != nil {
		mount = "/sys/fs/cgroup"
	}
	dir, err := os.MkdirTemp(filepath.Join(mount, own), "shaker-lab-")
	if err != nil {
		lab.Skip(t, "needs a control group: %v", err)
	}
	t.Cleanup(func() {
		for _, dir := range []string{dir, filepath.Join("/sys/fs/cgroup/systemd", own, filepath.Base(dir))} {
			lab.Eventually(t, dir+" is empty", func() bool {
				// The files of a control group disappear with its directory.
				exec.Command("find", dir, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";").Run()
				_, err := os.Stat(dir)
				return os.IsNotExist(err)
			})
		}
	})
	return dir
}

// try runs a shell script in the machine.
func (m *machine) try(script string, args ...string) (output string, err error) {
	enter := []string{"--all", fmt.Sprintf("--target=%d", m.pid), "env", "-i",
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "sh", "-ec", script, "sh"}
	out, err := exec.Command("nsenter", append(enter, args...)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// run runs a shell script in the machine and returns its output. It fails the test if the script fails.
func (m *machine) run(script string, args ...string) string {
	m.t.Helper()
	out, err := m.try(script, args...)
	if err != nil {
		m.t.Fatalf("%s %q: %v\n%s", script, args, err, out)
	}
	return out
}

// want runs a shell script in the machine and compares its output.
func (m *machine) want(script, want string) {
	m.t.Helper()
	if got, err := m.try("{ " + script + "; } || true"); got != want {
		m.t.Errorf("%s prints %q (%v), want %q", script, got, err, want)
	}
}

// scraped waits until the exporter listens on a port of the machine, and wants it to find its own port open.
func (m *machine) scraped(port int) {
	m.t.Helper()
	const success = "probe_success 1"
	probe := fmt.Sprintf("curl --silent 'localhost:%d/probe?target=127.0.0.1:%d' | grep '^probe_success'", port, port)
	lab.Eventually(m.t, "the exporter in the container probes its own port", func() bool {
		out, _ := m.try(probe)
		return out == success
	})
}

// The packages are what their users expect, when they install, upgrade and remove them, and lintian has
// nothing to say about the deb. The command of README.md builds version 0.1.0. The configuration of version 0.2.0
// has one more line: # New.
func TestPackages(t *testing.T) {
	needSlow(t)
	needMake(t, "go", "tar", "gzip", "find")
	lab.Program(t, "nsenter", "util-linux")
	lab.GoProgram(t, "nfpm")
	releaseEnv(t)
	root, _ := clone(t)
	dir := t.TempDir()
	const variables = ` PACKAGES="deb rpm apk" PLATFORMS="$1" OUT="$2"`
	here := "linux/" + runtime.GOARCH
	line := regexp.MustCompile("\\| `(make release [^`]*)`, then as root `apt install ./dist/(.*)` \\|\n")
	commands := line.FindStringSubmatch(lab.Read(t, "README.md"))
	if commands == nil || commands[2] != "shaker_exporter-0.1.0.linux-amd64.deb" {
		t.Fatalf("README.md has the commands %q for Debian, want a match of %s with version 0.1.0", commands, line)
	}
	run(t, root, commands[1]+variables, here, dir)
	lab.Write(t, root, "examples/shaker.yml", lab.Read(t, filepath.Join(root, "examples/shaker.yml"))+"# New\n")
	run(t, root, "make release ALLOW_DIRTY=1 SBOM= VERSION=v0.2.0"+variables, here, dir)
	t.Run("deb", func(t *testing.T) { installDeb(t, dir) })
	t.Run("rpm", func(t *testing.T) { installRPM(t, dir) })
	t.Run("apk", func(t *testing.T) { installAPK(t, dir) })
	t.Run("lintian", func(t *testing.T) { checkWithLintian(t, filepath.Join(dir, packageOf("0.1.0", "deb"))) })
}

// packageOf returns the name of the file of a package.
func packageOf(version, format string) string {
	return "shaker_exporter-" + version + ".linux-" + runtime.GOARCH + "." + format
}

const (
	unitState = "systemctl is-enabled shaker_exporter; systemctl is-active shaker_exporter"
	install   = "apt-get install --yes --option Dpkg::Options::=--force-confold "
)

// installDeb lets apt install, upgrade, remove and purge the package on a Debian that a systemd has booted. The
// service runs and is scraped, in its sandbox, also with the drop-in for SYNs without sockets. An upgrade keeps what
// the administrator changed: the configuration, the flags, and whether the service runs.
func installDeb(t *testing.T, packages string) {
	deb := func(version string) string { return "/mnt/" + packageOf(version, "deb") }
	m := boot(t, packages)

	// The control: nothing is there yet.
	m.want(unitState, "Failed to get unit file state for shaker_exporter.service: No such file or directory\ninactive")

	m.run(install + deb("0.1.0"))
	m.want(unitState, "enabled\nactive")
	m.scraped(10115)
	m.want("shaker_exporter --version 2>&1 | head -n 1 | cut -d ' ' -f 3", "0.1.0")
	pid := m.run("systemctl show --property=MainPID --value shaker_exporter")
	m.want("stat -c %U /proc/"+pid, "shaker_exporter")
	m.want("grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/"+pid+"/status | tr '\\t\\n' ' '",
		"CapEff: 0000000000000000 NoNewPrivs: 1 Seccomp: 2")
	m.want("bash -c '. /usr/share/bash-completion/completions/shaker_exporter; COMP_WORDS=(shaker_exporter pr); "+
		"COMP_CWORD=1; _shaker_exporter; echo $COMPREPLY'", "probe")
	m.want("dpkg --verify shaker-exporter", "")

	// The administrator's flags, and the drop-in as its comment describes it.
	m.run(`echo 'ARGS="--web.listen-address=:10116 --log.level=debug"' >/etc/default/shaker_exporter
		systemctl restart shaker_exporter`)
	m.scraped(10116)
	rawConf := m.run("cat /usr/share/doc/shaker-exporter/examples/systemd/raw.conf")
	for _, line := range regexp.MustCompile(`(?m)^#   (.*)$`).FindAllStringSubmatch(rawConf, -1) {
		m.run(line[1])
	}
	m.scraped(10116)
	m.want("journalctl --unit=shaker_exporter --output=cat | grep -c engine=raw", "1")
	pid = m.run("systemctl show --property=MainPID --value shaker_exporter")
	m.want("grep CapEff: /proc/"+pid+"/status | tr '\\t' ' '", "CapEff: 0000000000002000")
	m.want("stat -c %U /proc/"+pid, "shaker_exporter")

	// The service rejects an invalid configuration, and goes on.
	m.run(`cp /etc/shaker_exporter/shaker.yml /root; echo modules: >/etc/shaker_exporter/shaker.yml`)
	m.want("systemctl reload shaker_exporter >/dev/null 2>&1 || echo failed", "failed")
	m.scraped(10116)
	m.run(`cp /root/shaker.yml /etc/shaker_exporter/shaker.yml; systemctl reload shaker_exporter`)

	// An upgrade, with an administrator's change to a file that the new version changes, too.
	m.run("echo '# Mine' >>/etc/shaker_exporter/shaker.yml")
	m.run(install + deb("0.2.0"))
	m.want("tail -n 1 /etc/shaker_exporter/shaker.yml", "# Mine")
	m.want("tail -n 1 /etc/shaker_exporter/shaker.yml.dpkg-dist", "# New")
	m.want(unitState, "enabled\nactive")
	m.scraped(10116)
	m.want("curl --silent localhost:10116/metrics | grep -o 'version=\"0.2.0\"'", `version="0.2.0"`)

	// An upgrade does not start a service that the administrator has stopped.
	m.run("systemctl disable --now shaker_exporter")
	m.run(install + "--reinstall " + deb("0.2.0"))
	m.want(unitState, "disabled\ninactive")
	m.run("systemctl enable --now shaker_exporter")
	m.scraped(10116)

	m.run("apt-get remove --yes shaker-exporter; touch /etc/shaker_exporter/web.yml")
	m.want("systemctl is-active shaker_exporter; command -v shaker_exporter", "inactive")
	m.want("ls /etc/default/shaker_exporter /etc/shaker_exporter/shaker.yml",
		"/etc/default/shaker_exporter\n/etc/shaker_exporter/shaker.yml")
	m.run(install + deb("0.2.0"))
	m.want(unitState, "enabled\nactive")
	m.scraped(10116) // with the administrator's flags

	m.run("apt-get purge --yes shaker-exporter")
	m.want("find /etc /usr /lib /var/lib -path '*shaker*' | sort", strings.Join([]string{
		"/etc/shaker_exporter", "/etc/shaker_exporter/web.yml", // the administrator's own files
		"/etc/systemd/system/shaker_exporter.service.d", "/etc/systemd/system/shaker_exporter.service.d/raw.conf",
	}, "\n"))
	m.want("dpkg-query --show shaker-exporter", "dpkg-query: no packages found matching shaker-exporter")
}

// installRPM lets rpm install, upgrade and remove the package. The rules are those of rpm: the presets of the
// distribution, here Debian's, enable the service, nothing starts it, and a changed configuration is kept when the
// package is removed.
func installRPM(t *testing.T, packages string) {
	rpm := func(version string) string { return "/mnt/" + packageOf(version, "rpm") }
	m := boot(t, packages)
	m.run("rpm --install " + rpm("0.1.0"))
	m.want(unitState, "enabled\ninactive")
	m.run("systemctl start shaker_exporter")
	m.scraped(10115)
	m.want("stat -c %U /proc/$(systemctl show --property=MainPID --value shaker_exporter)", "shaker_exporter")

	m.run("echo '# Mine' >>/etc/shaker_exporter/shaker.yml; rpm --upgrade " + rpm("0.2.0"))
	m.want("tail -n 1 /etc/shaker_exporter/shaker.yml", "# Mine")
	m.want("tail -n 1 /etc/shaker_exporter/shaker.yml.rpmnew", "# New")
	m.want(unitState, "enabled\nactive")
	m.scraped(10115)
	m.want("curl --silent localhost:10115/metrics | grep -o 'version=\"0.2.0\"'", `version="0.2.0"`)

	m.run("systemctl disable --now shaker_exporter; rpm --upgrade --force " + rpm("0.2.0"))
	m.want(unitState, "disabled\ninactive")
	m.run("systemctl enable --now shaker_exporter")
	m.scraped(10115)

	m.run("rpm --erase shaker-exporter")
	m.want("systemctl is-active shaker_exporter; command -v shaker_exporter", "inactive")
	m.want("find /etc /usr /lib -path '*shaker*' | sort",
		"/etc/shaker_exporter\n/etc/shaker_exporter/shaker.yml.rpmnew\n/etc/shaker_exporter/shaker.yml.rpmsave")
}

// installAPK does what apk does to install, upgrade and remove the package: it extracts files and calls scripts. The
// service is one of OpenRC, which Debian has, too.
func installAPK(t *testing.T, packages string) {
	m := boot(t, packages)
	// What Alpine has: OpenRC's directories, and the programs that add users.
	m.run(`cd /usr/sbin
		for name in daemons exclusive failed inactive options scheduled started starting stopping tmp wasinactive; do
			mkdir -p "/run/openrc/$name"
		done
		echo default >/run/openrc/softlevel
		rm -f addgroup adduser
		printf '#!/bin/sh\ngroupadd --system "$2"' >addgroup
		printf '#!/bin/sh\nfor name; do :; done; useradd --system --gid="$name" "$name"' >adduser
		chmod +x addgroup adduser`)
	const extract = `tar --extract --gzip --warning=no-unknown-keyword --file="/mnt/$1" `
	script := func(version, name string) {
		t.Helper()
		m.run(extract+`--to-stdout "$2" | sh`, packageOf(version, "apk"), name)
	}
	script("0.1.0", ".pre-install")
	m.run(extract+"--directory=/ --exclude='.[pP]*'", packageOf("0.1.0", "apk"))
	m.run("rc-update add shaker_exporter boot; rc-update add shaker_exporter default; rc-service shaker_exporter start")
	m.scraped(10115)
	m.want("stat -c %U /proc/$(pidof shaker_exporter)", "shaker_exporter")

	// The service rejects an invalid configuration, and goes on.
	m.run("cp /etc/shaker_exporter/shaker.yml /root; echo modules: >/etc/shaker_exporter/shaker.yml")
	m.want("rc-service shaker_exporter reload >/dev/null 2>&1 || echo failed", "failed")
	m.want("rc-service shaker_exporter restart >/dev/null 2>&1 || echo failed", "failed")
	m.scraped(10115)
	m.run(`cp /root/shaker.yml /etc/shaker_exporter/shaker.yml; rc-service shaker_exporter reload
		echo 'ARGS="--web.listen-address=:10116"' >/etc/conf.d/shaker_exporter; rc-service shaker_exporter restart`)
	m.scraped(10116)

	// An upgrade restarts a service that runs, and no other. apk keeps changed files in /etc.
	m.run(extract+"--directory=/ --exclude='.[pP]*' --exclude=etc", packageOf("0.2.0", "apk"))
	script("0.2.0", ".post-upgrade")
	m.scraped(10116)
	m.want("curl --silent localhost:10116/metrics | grep -o 'version=\"0.2.0\"'", `version="0.2.0"`)
	m.run("rc-service shaker_exporter stop")
	script("0.2.0", ".post-upgrade")
	m.want("rc-service --quiet shaker_exporter status || echo stopped", "stopped")

	m.run("rc-service shaker_exporter start")
	m.scraped(10116)
	script("0.2.0", ".pre-deinstall")
	m.want("rc-service --quiet shaker_exporter status || echo stopped", "stopped")
	m.want("find /etc/runlevels -name shaker_exporter", "")
}

// checkWithLintian checks that lintian has nothing to say about a deb, except what its overrides explain. The
// control is the deb without its overrides.
func checkWithLintian(t *testing.T, deb string) {
	lintian := lab.Program(t, "lintian", "lintian")
	check := func(args ...string) string {
		args = append([]string{"--allow-root", "--tag-display-limit=3"}, args...)
		out, _ := exec.Command(lintian, append(args, deb)...).CombinedOutput()
		return string(out)
	}
	if got := check(); got != "" {
		t.Errorf("lintian prints\n%swant nothing", got)
	}
	if got, want := check("--no-override"), "statically-linked-binary"; !strings.Contains(got, want) {
		t.Errorf("lintian prints, without overrides,\n%swant %s in it", got, want)
	}
}
