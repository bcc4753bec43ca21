# SPDX-License-Identifier: BSD-2-Clause
#
# The project's commands. They need nothing but cargo: what else is missing they install, and say so.

GUEST = target/guest
FREEBSD = target/freebsd
CARGO = cargo
INSTALL = install
# Where `make install` puts the programs: /usr/local here and in FreeBSD's ports. DESTDIR is put in front of it.
PREFIX = /usr/local
DESTDIR =
# Where the programs are that are installed.
BUILT = target/release

.PHONY: all demo test freebsd check-freebsd-host soak matrix fuzz bench goldens lint doc miri guest headers deps install install-built

all: deps
	$(CARGO) build --release --workspace

# Debian's kernels and busybox, if this machine can have them; the tests that need them say so if not.
guest:
	@tests/guests/debian.sh $(GUEST) || [ $$? = 3 ]
	@tests/guests/debian.sh $(GUEST)/generic generic || [ $$? = 3 ]

# zig, whose FreeBSD headers the ABI is held against, if this machine can have it; the tests that need it say so if not.
headers:
	@tests/freebsd/zig.sh $(FREEBSD) || [ $$? = 3 ]

# What the build and the tests need besides cargo.
deps:
	@tests/install.sh

# The programs, their manual pages, what shells complete their options by, and the rc(8) script, which only FreeBSD has a place for.
install: all install-built

SHARE = $(DESTDIR)$(PREFIX)/share
install-built:
	$(INSTALL) -d $(DESTDIR)$(PREFIX)/sbin $(SHARE)/man/man5 $(SHARE)/man/man8
	$(INSTALL) -m 555 $(BUILT)/bhyve $(BUILT)/bhyvectl $(DESTDIR)$(PREFIX)/sbin
	$(INSTALL) -m 444 man/*.5 $(SHARE)/man/man5
	$(INSTALL) -m 444 man/*.8 $(SHARE)/man/man8
	$(INSTALL) -d $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d
	$(INSTALL) -m 444 share/completion/bhyve.bash $(SHARE)/bash-completion/completions/bhyve
	$(INSTALL) -m 444 share/completion/bhyvectl.bash $(SHARE)/bash-completion/completions/bhyvectl
	$(INSTALL) -m 444 share/completion/_* $(SHARE)/zsh/site-functions
	$(INSTALL) -m 444 share/completion/*.fish $(SHARE)/fish/vendor_completions.d
	[ "$$(uname)" != FreeBSD ] || { $(INSTALL) -d $(DESTDIR)$(PREFIX)/etc/rc.d && \
	    $(INSTALL) -m 555 share/rc.d/* $(DESTDIR)$(PREFIX)/etc/rc.d; }

# The main job, shown: a Debian guest is suspended and goes on in a new process.
demo: deps guest
	$(CARGO) build --release --workspace
	$(CARGO) run --release --quiet -p vmm-tests --bin demo

# Everything that is checked on every change.
test: deps guest headers lint doc
	$(CARGO) build --release --workspace
	$(CARGO) test --release --workspace

# Both programs for FreeBSD, with every warning of every crate an error, and whether its base system has all that they need.
freebsd: deps
	@tests/freebsd/build.sh $(FREEBSD)

# On FreeBSD itself, as root: what only it can show. docs/freebsd-host.md says what to expect.
check-freebsd-host:
	@tests/freebsd/check-host.sh

lint:
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings

# The documentation of every crate, with every warning an error.
doc:
	RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' $(CARGO) doc --quiet --no-deps --workspace --document-private-items

# What Miri can execute: the ABI, the names of x86, the configuration, a checkpoint's format, virtqueues. Needs a nightly toolchain with Miri.
miri:
	@tests/miri.sh || [ $$? = 3 ]

# The long runs: a hundred rounds of suspend and restore, many millions of instruction cases, thousands of guests that end.
soak: deps guest
	$(CARGO) build --release --workspace
	DIFF_CASES=50000000 $(CARGO) test --release -p vmm-cpu --test differential -- --include-ignored
	$(CARGO) test --release -p vmm -- --ignored
	$(CARGO) test --release -p vmm-tests -- --ignored --nocapture

# The test plan of the review that brought save and restore to bhyve, on every machine of it.
matrix: deps guest
	$(CARGO) build --release --workspace
	$(CARGO) run --release --quiet -p vmm-tests --bin matrix

# Looks for hostile input that gets through, in each place that takes any for FUZZ_SECONDS.
fuzz: deps
	@fuzz/run.sh

# Boot time and throughput beside QEMU's TCG, checkpoint and restore times and sizes, and what pausing costs on an exit.
bench: guest
	@tests/install.sh bench
	$(CARGO) build --release --workspace
	$(CARGO) run --release --quiet -p vmm-tests --bin bench
	$(CARGO) run --release --quiet -p vmm-cpu --example mips

# Once for each release: the programs in PROGRAMS write the golden checkpoints of RELEASE. tests/goldens/README.md says more.
goldens:
	$(CARGO) run --release --quiet -p vmm-tests --bin goldens -- $(RELEASE) $(PROGRAMS)
