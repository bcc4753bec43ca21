# The project's commands. They need nothing but cargo: what else is missing they install, and say so.

GUEST = target/guest
FREEBSD = target/freebsd
CARGO = cargo

.PHONY: all demo test freebsd check-freebsd-host soak matrix fuzz bench lint guest headers install

all:
	$(CARGO) build --release --workspace

# Debian's kernels and busybox, if this machine can have them; the tests that need them say so if not.
guest:
	@tests/guests/debian.sh $(GUEST) || [ $$? = 3 ]
	@tests/guests/debian.sh $(GUEST)/generic generic || [ $$? = 3 ]

# zig, whose FreeBSD headers the ABI is held against, if this machine can have it; the tests that need it say so if not.
headers:
	@tests/freebsd/zig.sh $(FREEBSD) || [ $$? = 3 ]

install:
	@tests/install.sh

# The main job, shown: a Debian guest is suspended and goes on in a new process.
demo: install guest
	$(CARGO) build --release --workspace
	$(CARGO) run --release --quiet -p vmm-tests --bin demo

# Everything that is checked on every change.
test: install guest headers lint
	$(CARGO) build --release --workspace
	$(CARGO) test --release --workspace

# Both programs for FreeBSD, with every warning of every crate an error, and whether its base system has all that they need.
freebsd: install
	@tests/freebsd/build.sh $(FREEBSD)

# On FreeBSD itself, as root: what only it can show. docs/freebsd-host.md says what to expect.
check-freebsd-host:
	@tests/freebsd/check-host.sh

lint:
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings

# The long runs: a hundred rounds of suspend and restore, many millions of instruction cases.
soak: install guest
	$(CARGO) build --release --workspace
	DIFF_CASES=50000000 $(CARGO) test --release -p vmm-cpu --test differential
	$(CARGO) test --release -p vmm-tests -- --ignored --nocapture

# The test plan of the review that brought save and restore to bhyve, on every machine of it.
matrix: install guest
	$(CARGO) build --release --workspace
	$(CARGO) run --release --quiet -p vmm-tests --bin matrix

# Looks for hostile input that gets through, in each place that takes any for FUZZ_SECONDS.
fuzz: install
	@fuzz/run.sh

# Boot time and throughput beside QEMU's TCG, checkpoint and restore times and sizes, and what pausing costs on an exit.
bench: guest
	@tests/install.sh bench
	$(CARGO) build --release --workspace
	$(CARGO) run --release --quiet -p vmm-tests --bin bench
	$(CARGO) run --release --quiet -p vmm-cpu --example mips
