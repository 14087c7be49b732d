#!/bin/bash
# Makes the images of the example apps out of Debian packages, and pushes them to a registry.
#
#   examples/images.sh hello   REGISTRY_HOST:PORT   our own small web server and worker
#   examples/images.sh nginx   REGISTRY_HOST:PORT   Debian's nginx from an ordinary Debian tree
#   examples/images.sh redis|postgres|flask ...     Debian's Redis and PostgreSQL, and a Python web app
#   examples/images.sh busybox|static ...           images with hardly a file in them
#   examples/images.sh systemd ...                  Debian as a whole machine, whose PID 1 is systemd
#   examples/images.sh hostile ...                  a program that attacks its node, for a test
#   examples/images.sh debian ...                   Debian minbase, and nothing else
#   examples/images.sh python ...                   python3 with some hundred MiB of packages
#   examples/images.sh node ...                     nodejs with the node_modules of a real npm project; needs npm
#   examples/images.sh tools|modules ...            for the bench of root disks: Debian minbase with python3 and
#                                                   git; and only those node_modules, 48 000 small files
#
# Standard output is one line, `repository@sha256:...`, ready for `platform deploy`; without a registry it is
# the image's OCI layout, `DIRECTORY:TAG`. All else goes to standard error. What was made is kept in
# target/examples and made again only if its inputs changed, so that a second run takes about a second.
# Needs root (mmdebstrap, owners in the tree).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(dirname "$here")
work=${CARGO_TARGET_DIR:-$top/target}/examples
# Rust, in the home of the user who called sudo too.
# shellcheck source=demo/rust.sh
. "$top/demo/rust.sh"

say() { printf '%s\n' "images: $*" >&2; }
die() { say "$@"; exit 1; }
names='hello|hostile|systemd|nginx|redis|postgres|flask|busybox|static|debian|python|node|tools|modules'
usage() { die "usage: examples/images.sh $names [REGISTRY_HOST:PORT]"; }

main() {
    [ $# -eq 1 ] || [ $# -eq 2 ] || usage
    local name=$1 registry=${2:-}
    [[ $name =~ ^($names)$ ]] || usage
    install_tools
    # An image has the modes that a Dockerfile would give it, not those of the one who makes it.
    umask 022
    mkdir -p "$work"
    # Two runs at once: the second one waits and then finds everything made.
    exec 9>"$work/lock"
    flock 9

    local key
    key=$("key_of_$name" | sha256sum | cut -c1-16)
    local layout=$work/$name-$key
    if [ ! -d "$layout" ]; then
        rm -rf "$work/$name"-*
        make_image "$name" "$layout"
    fi
    if [ -n "$registry" ]; then push "$name" "$layout" "$registry"; else echo "$layout:$name"; fi
}

# The tools are Debian packages; a missing one is installed.
install_tools() {
    local missing=() tool
    for tool in mmdebstrap skopeo umoci; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    [ "$(id -u)" -eq 0 ] || die "must be run as root, because an image's files have owners; try: sudo $0 ..."
    [ ${#missing[@]} -gt 0 ] || return 0
    say "installing ${missing[*]}"
    {
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
    } >&2 || die "could not install: apt-get install ${missing[*]}"
}

# Linked statically, so that it runs whatever C library the image has. Not even cargo is asked where nothing
# changed: it would wait for other builds.
build() {
    command -v cargo >/dev/null || die "cargo is missing; install Rust: https://rustup.rs"
    (cd "$top" && cargo rustc --release --locked -q -p "$1" --bin "$1" -- -C target-feature=+crt-static) >&2
    binary=${CARGO_TARGET_DIR:-$top/target}/release/$1
}

# What an image is made from, as text: another text, another image.
key_of_hello() {
    sha256sum "${BASH_SOURCE[0]}" "$top/Cargo.lock" "$here"/hello/hello.toml "$here"/hello/src/*.rs | cut -d' ' -f1
    suite
}
key_of_hostile() {
    sha256sum "${BASH_SOURCE[0]}" "$top/Cargo.lock" "$here"/hostile/src/*.rs "$top"/crates/{guest-protocol,model}/src/*.rs |
        cut -d' ' -f1
}
key_of_nginx() {
    sha256sum "${BASH_SOURCE[0]}" | cut -d' ' -f1
    suite
}
key_of_redis() { key_of_nginx; }
key_of_busybox() { key_of_nginx; }
key_of_static() { key_of_hello; }
key_of_postgres() {
    key_of_nginx
    sha256sum "$here/postgres/start" | cut -d' ' -f1
}
key_of_flask() {
    key_of_nginx
    sha256sum "$here/flask/app.py" | cut -d' ' -f1
}
key_of_debian() { key_of_nginx; }
key_of_systemd() { key_of_nginx; }
key_of_python() { key_of_nginx; }
key_of_tools() { key_of_nginx; }
key_of_modules() { key_of_node; }
key_of_node() {
    key_of_nginx
    sha256sum "$here"/node/package.json "$here"/node/server.js | cut -d' ' -f1
}

# shellcheck source=/dev/null
suite() { (. /etc/os-release && echo "$VERSION_CODENAME"); }

# The machine's own sources of Debian packages, without those of others.
debian_sources() {
    # These are apt's own, not the shell's.
    # shellcheck disable=SC2016
    local format='$(ORIGIN) deb $(SITE) $(RELEASE) $(COMPONENT)'
    apt-get indextargets --format "$format" 'Created-By: Packages' |
        sed -n 's/^Debian deb/deb/p' | awk -v suite="$(suite)" 'index($3, suite) == 1 && $3 !~ /backports/' | sort -u
}

# mmdebstrap with the machine's sources and its apt's settings for the network (a proxy, say).
bootstrap() {
    local tree=$1
    shift
    local sources settings
    sources=$(debian_sources)
    [ -n "$sources" ] || die "apt knows no Debian packages; try: apt-get update"
    settings=$work/apt.conf
    apt-config dump | grep -E '^Acquire::(http|https|Retries|Check-Valid-Until)' >"$settings" || true
    # `root` needs no user namespaces; man pages and the like are left out.
    mmdebstrap --quiet --mode=root --aptopt="$settings" \
        --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        "$@" "$(suite)" "$tree" - <<<"$sources" >&2
}

# A few packages, unpacked and not configured: nothing in them needs to run to make them work.
tree_of_hello() {
    local tree=$1
    build hello
    bootstrap "$tree" --variant=extract --include=base-files,base-passwd,busybox-static
    chroot "$tree" /bin/busybox --install -s /bin
    cp "$tree/usr/share/base-passwd/passwd.master" "$tree/etc/passwd"
    cp "$tree/usr/share/base-passwd/group.master" "$tree/etc/group"
    echo 'hello:x:1000:1000:hello:/var/lib/hello:/bin/sh' >>"$tree/etc/passwd"
    echo 'hello:x:1000:' >>"$tree/etc/group"
    install -D -m 0755 "$binary" "$tree/usr/bin/hello"
    install -D -m 0644 "$here/hello/hello.toml" "$tree/etc/hello/hello.toml"
    install -d -o 1000 -g 1000 -m 0755 "$tree/var/lib/hello"
    rm -rf "$tree"/var/lib/dpkg "$tree"/var/lib/apt "$tree"/var/cache/* "$tree"/usr/lib/*/gconv
}

configure_hello() {
    umoci config --image "$1" --config.user hello --config.workingdir /var/lib/hello \
        --config.cmd /usr/bin/hello --config.cmd web \
        --config.exposedports 8080/tcp --config.stopsignal SIGTERM \
        --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
}

default_path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# Nothing in it knows the platform: the manifest says where its data are.
tree_of_redis() {
    bootstrap "$1" --variant=minbase --include=redis-server
    rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*
}

configure_redis() {
    umoci config --image "$1" --config.user redis --config.entrypoint redis-server \
        --config.exposedports 6379/tcp --config.env "PATH=$default_path"
}

# Its `start` makes a cluster on the volume the first time.
tree_of_postgres() {
    bootstrap "$1" --variant=minbase --include=postgresql
    install -m 0755 "$here/postgres/start" "$1/usr/local/bin/start-postgres"
    rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/lib/postgresql/*/main
}

configure_postgres() {
    # SIGINT is its "fast shutdown": clients are cut off, and everything is written down.
    umoci config --image "$1" --config.user postgres --config.cmd start-postgres --config.stopsignal SIGINT \
        --config.exposedports 5432/tcp --config.env "PATH=$default_path:/usr/lib/postgresql/15/bin" \
        --config.env LANG=C.UTF-8
}

tree_of_flask() {
    bootstrap "$1" --variant=minbase --include=python3-flask,gunicorn
    install -D -m 0644 "$here/flask/app.py" "$1/srv/app/app.py"
    rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*
}

configure_flask() {
    umoci config --image "$1" --config.user www-data --config.workingdir /srv/app \
        --config.cmd gunicorn --config.cmd --bind --config.cmd '[::]:8000' --config.cmd app:app \
        --config.exposedports 8000/tcp --config.env "PATH=$default_path"
}

# One program under many names: no /etc, no /tmp, no user.
tree_of_busybox() {
    bootstrap "$1.debian" --variant=extract --include=busybox-static
    install -D -m 0755 "$1.debian/bin/busybox" "$1/bin/busybox"
    chroot "$1" /bin/busybox --install -s /bin
    mkdir -p "$1/www"
    echo 'busybox, from a microVM' >"$1/www/index.html"
}

configure_busybox() {
    umoci config --image "$1" --config.cmd httpd --config.cmd -f --config.cmd -v --config.cmd -p \
        --config.cmd '[::]:8080' --config.cmd -h --config.cmd /www --config.env PATH=/bin
}

# A single static program, as from `FROM scratch`: no shell, no library, no directory. The one that it writes to
# is a volume of the image, which any runtime makes.
tree_of_static() {
    build hello
    install -D -m 0755 "$binary" "$1/hello"
}

configure_static() {
    umoci config --image "$1" --config.entrypoint /hello --config.volume /tmp \
        --config.env HELLO_GREETING='Hello from scratch!' --config.env HELLO_STATE_DIR=/tmp
}

# Nothing but the program, which is root.
tree_of_hostile() {
    build hostile
    install -D -m 0755 "$binary" "$1/hostile"
}

configure_hostile() { umoci config --image "$1" --config.entrypoint /hostile --config.cmd wait; }

# As anyone would install it.
tree_of_nginx() {
    local tree=$1
    bootstrap "$tree" --variant=minbase --include=nginx-light
    ln -sf /dev/stdout "$tree/var/log/nginx/access.log"
    ln -sf /dev/stderr "$tree/var/log/nginx/error.log"
    rm -rf "$tree"/var/lib/apt/lists/* "$tree"/var/cache/apt/*
}

configure_nginx() {
    umoci config --image "$1" --config.cmd nginx --config.cmd -g --config.cmd 'daemon off;' \
        --config.exposedports 80/tcp --config.stopsignal SIGQUIT \
        --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
}

tree_of_debian() { bootstrap "$1" --variant=minbase; }

configure_debian() {
    umoci config --image "$1" --config.cmd sleep --config.cmd infinity \
        --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
}

# No StopSignal: the platform knows systemd's.
tree_of_systemd() {
    bootstrap "$1" --variant=minbase --include=systemd-sysv,dbus
    rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*
}

configure_systemd() { umoci config --image "$1" --config.cmd /sbin/init --config.env "PATH=$default_path"; }

# The packages of Debian's that many have: compiled code, thousands of modules, links, alternatives.
tree_of_python() {
    bootstrap "$1" --variant=minbase --include=python3-pandas,python3-django,python3-sqlalchemy,python3-requests
    rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*
}

configure_python() {
    umoci config --image "$1" --config.cmd python3 --config.cmd -m --config.cmd http.server \
        --config.cmd 8000 --config.cmd --bind --config.cmd :: \
        --config.workingdir /usr/lib/python3/dist-packages --config.exposedports 8000/tcp \
        --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
}

tree_of_node() {
    bootstrap "$1" --variant=minbase --include=nodejs
    rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*
    tree_of_modules "$1"
}

# Their time is npm's, to the nanosecond, which no image needs to tell of 48 000 files.
tree_of_modules() {
    local app=$1/srv/shop
    command -v npm >/dev/null || die "npm is missing; try: apt-get install npm"
    mkdir -p "$app"
    cp "$here"/node/package.json "$here"/node/server.js "$app"
    (cd "$app" && npm install --no-audit --no-fund --ignore-scripts --no-progress) >&2
    find "$app" -print0 | xargs -0 touch --no-dereference --date=@1700000000
}

configure_modules() { :; }

tree_of_tools() { bootstrap "$1" --variant=minbase --include=python3,git; }

configure_tools() { configure_debian "$1"; }

configure_node() {
    umoci config --image "$1" --config.user nobody --config.workingdir /srv/shop \
        --config.cmd node --config.cmd server.js --config.exposedports 3000/tcp \
        --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
}

# A root tree, and an OCI layout of one layer around it. The layout gets its name when it is complete.
make_image() {
    local name=$1 layout=$2 began=$SECONDS
    scratch=$(mktemp -d "$work/making.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    say "making $name from Debian packages"
    "tree_of_$name" "$scratch/tree"
    local oci=$scratch/oci
    {
        umoci init --layout "$oci"
        umoci new --image "$oci:$name"
        "configure_$name" "$oci:$name"
        # Not `umoci insert`: what it makes (0.4.7) does not end as a tar must.
        tar --create --file "$scratch/layer.tar" --directory "$scratch/tree" --sort=name --numeric-owner \
            --format=posix --pax-option=delete=atime,delete=ctime --xattrs .
        umoci raw add-layer --image "$oci:$name" "$scratch/layer.tar"
        umoci gc --layout "$oci"
    } >&2
    mv "$oci" "$layout"
    say "made $name in $((SECONDS - began)) s: tree $(size_of "$scratch/tree"), image $(size_of "$layout")"
}

size_of() { du -sh --apparent-size "$1" | cut -f1; }

# Pushes only what the registry does not have.
push() {
    local name=$1 layout=$2 registry=$3 digest
    digest=$(skopeo inspect --raw "oci:$layout:$name" | sha256sum | cut -d' ' -f1)
    local reference=$registry/$name
    if ! skopeo inspect --tls-verify=false --raw "docker://$reference@sha256:$digest" >/dev/null 2>&1; then
        say "pushing $name to $registry"
        skopeo copy --quiet --dest-tls-verify=false "oci:$layout:$name" "docker://$reference:latest" >&2 ||
            die "could not push to $registry; is the registry running?"
    fi
    echo "$reference@sha256:$digest"
}

main "$@"
