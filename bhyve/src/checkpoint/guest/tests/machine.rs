// SPDX-License-Identifier: BSD-2-Clause

//! A VM of a stand-in with a small guest in it, whose FPU holds known values in many modes of the processor.

use super::super::*;
use crate::checkpoint::items::Item;
use crate::checkpoint::save_kernel;
use crate::mevent::Mevent;
use iced_x86::code_asm::*;
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use vmm_x86::specialreg::{Cr0, Cr4, Efer, Rflags};
use vmmapi::backend::standin::Release;
use vmmapi::backend::{Backend, HostMapping, Kind};
use vmmapi::{Choice, CpuSet, CreateOptions, Errno, SoftOptions, access_rights};
use zerocopy::FromBytes;

pub const RELEASES: [Release; 3] = [Release::Fourteen, Release::Fifteen, Release::Sixteen];
const MEMORY: u64 = 1 << 20;
const FLAGS: Rflags = Rflags::RESERVED_1.union(Rflags::I).union(Rflags::IOPL);
/// Where the guest says that it has come to a point.
const POINT: u16 = 0x5fe;

/// The guest's memory: code, handlers of events, data, and tables.
const CODE: u64 = 0x1000;
const HANDLERS: u64 = 0x2000;
const DATA: u64 = 0x3000;
/// What the handlers count: NMIs, interrupts, exceptions.
const COUNTS: u64 = 0x3300;
/// XCR0.
const SEEN_XCR0: u64 = 0x3310;
/// FXSAVE's image.
const SEEN: u64 = 0x3400;
const RESULTS: std::ops::Range<u64> = COUNTS..SEEN + 512;
const GDT: u64 = 0x4000;
const TSS: u64 = 0x4100;
const IDT: u64 = 0x5000;
const RING0_STACK: u64 = 0x6800;
const STACK: u64 = 0x7000;
const TABLES: u64 = 0x8000;

pub const INTERRUPT: u8 = 0x40;
pub const GP: u8 = 13;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Real,
    Protected,
    Long,
    /// In ring 3.
    User,
}

impl Mode {
    fn bits(self) -> u32 {
        match self {
            Self::Real => 16,
            Self::Protected => 32,
            Self::Long | Self::User => 64,
        }
    }

    fn is_long(self) -> bool {
        self.bits() == 64
    }
}

/// What waits for the guest when it is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    Nothing,
    Nmi,
    /// An interrupt whose delivery was interrupted.
    Interrupt,
    /// One that the local APIC has.
    Lapic,
    Exception,
    /// All but the local APIC's.
    Everything,
}

#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub mode: Mode,
    /// MMX registers instead of x87's.
    pub mmx: bool,
    /// XCR0, with CR4.OSXSAVE.
    pub xcr0: Option<u32>,
    /// CR0.TS is set at the point.
    pub ts: bool,
    pub waits: Waits,
}

pub const PLAIN: Case = Case {
    mode: Mode::Long,
    mmx: false,
    xcr0: None,
    ts: false,
    waits: Waits::Nothing,
};

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for mode in [Mode::Real, Mode::Protected, Mode::Long, Mode::User] {
        for mmx in [false, true] {
            cases.push(Case { mode, mmx, ..PLAIN });
        }
    }
    for mode in [Mode::Real, Mode::Protected, Mode::Long] {
        cases.push(Case {
            mode,
            ts: true,
            ..PLAIN
        });
        for xcr0 in [1, 3] {
            let xcr0 = Some(xcr0);
            cases.push(Case {
                mode,
                xcr0,
                ..PLAIN
            });
        }
    }
    let all = [
        Waits::Nmi,
        Waits::Interrupt,
        Waits::Lapic,
        Waits::Exception,
        Waits::Everything,
    ];
    for waits in all {
        cases.push(Case { waits, ..PLAIN });
        let mode = Mode::User;
        cases.push(Case {
            mode,
            waits,
            ..PLAIN
        });
    }
    cases
}

/// A guest's code: what comes before the point, and what comes behind it.
fn code(case: &Case) -> Vec<u8> {
    let mut a = CodeAssembler::new(case.mode.bits()).unwrap();
    let at = |offset: u64| ptr(DATA + offset);
    a.fninit().unwrap();
    a.fldcw(word_ptr(DATA)).unwrap();
    if case.mmx {
        a.movq(mm3, qword_ptr(DATA + 8)).unwrap();
        a.movq(mm7, qword_ptr(DATA + 16)).unwrap();
    } else {
        a.fldpi().unwrap();
        a.fld1().unwrap();
        a.fld(qword_ptr(DATA + 8)).unwrap();
    }
    a.ldmxcsr(dword_ptr(DATA + 4)).unwrap();
    a.movups(xmm0, at(0x20)).unwrap();
    a.movups(xmm7, at(0x30)).unwrap();
    if case.mode.is_long() {
        a.movups(xmm15, at(0x40)).unwrap();
    }
    if let Some(xcr0) = case.xcr0 {
        a.xor(ecx, ecx).unwrap();
        a.xor(edx, edx).unwrap();
        a.mov(eax, xcr0).unwrap();
        a.xsetbv().unwrap();
    }
    if case.ts {
        toggle_ts(&mut a, case.mode);
    }
    a.mov(dx, i32::from(POINT)).unwrap();
    a.out(dx, al).unwrap();
    // Whatever waits is delivered before this.
    a.nop().unwrap();
    if case.ts {
        a.clts().unwrap();
    }
    if case.xcr0.is_some() {
        a.xor(ecx, ecx).unwrap();
        a.xgetbv().unwrap();
        a.mov(dword_ptr(SEEN_XCR0), eax).unwrap();
    }
    a.fxsave(ptr(SEEN)).unwrap();
    a.mov(dx, i32::from(POINT)).unwrap();
    a.out(dx, al).unwrap();
    a.assemble(CODE).unwrap()
}

fn toggle_ts(a: &mut CodeAssembler, mode: Mode) {
    if mode.is_long() {
        a.mov(rax, cr0).unwrap();
        a.xor(eax, Cr0::TS.bits() as u32).unwrap();
        a.mov(cr0, rax).unwrap();
    } else {
        a.mov(eax, cr0).unwrap();
        a.xor(eax, Cr0::TS.bits() as u32).unwrap();
        a.mov(cr0, eax).unwrap();
    }
}

/// Handlers of NMIs, interrupts and exceptions, 32 bytes each: they count.
fn handlers() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, has_error) in [false, false, true].into_iter().enumerate() {
        let start = HANDLERS + index as u64 * 32;
        let mut a = CodeAssembler::new(64).unwrap();
        a.inc(byte_ptr(COUNTS + index as u64)).unwrap();
        if has_error {
            a.add(rsp, 8).unwrap();
        }
        a.iretq().unwrap();
        bytes.resize(index * 32, 0);
        bytes.extend(a.assemble(start).unwrap());
    }
    bytes
}

/// A back end that notes the requests that are about the stub's memory.
struct Noting {
    inner: Arc<dyn Backend>,
    noted: Arc<Mutex<Vec<&'static str>>>,
}

impl Backend for Noting {
    fn kind(&self) -> Kind {
        self.inner.kind()
    }
    fn ioctl(&self, request: u64, arg: &mut [u8], buffers: &mut [&mut [u8]]) -> Result<(), Errno> {
        let what = match request {
            VM_MMAP_MEMSEG
                if VmMemmap::read_from_bytes(arg)
                    .is_ok_and(|map| map.flags & VM_MEMMAP_F_WIRED != 0) =>
            {
                Some("map and wire")
            }
            VM_MMAP_MEMSEG => Some("map"),
            VM_MUNMAP_MEMSEG => Some("unmap"),
            VM_RESUME_CPU => Some("run"),
            VM_SNAPSHOT_REQ => VmSnapshotMeta::read_from_bytes(arg)
                .is_ok_and(|meta| meta.op == VM_SNAPSHOT_RESTORE)
                .then_some("restore"),
            _ => None,
        };
        self.noted.lock().extend(what);
        self.inner.ioctl(request, arg, buffers)
    }
    fn map_sysmem(&self, gpa: u64, len: u64) -> Result<HostMapping, Errno> {
        self.inner.map_sysmem(gpa, len)
    }
    fn map_devmem(&self, segment: &str, len: u64) -> Result<HostMapping, Errno> {
        self.inner.map_devmem(segment, len)
    }
    fn memory_written(&self, gpa: u64, len: u64) {
        self.inner.memory_written(gpa, len);
    }
    fn populated(&self, gpa: u64, len: u64) -> Result<Vec<Range<u64>>, Errno> {
        self.inner.populated(gpa, len)
    }
    fn tsc_hz(&self) -> Option<u64> {
        self.inner.tsc_hz()
    }
    fn is_software(&self) -> bool {
        self.inner.is_software()
    }
    fn destroy(&self) -> Result<(), Errno> {
        self.inner.destroy()
    }
}

/// Leads to ring 3, which no request does.
const TO_USER: u64 = 0x2800;

/// A VM of one processor at rest.
pub struct Machine {
    pub vm: Vm,
    pub vcpus: Arc<Vcpus>,
    pub stub: Stub,
    pub noted: Arc<Mutex<Vec<&'static str>>>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.vm.destroy().unwrap();
    }
}

impl Machine {
    pub fn new(release: Release) -> Self {
        Self::with_processors(release, 1)
    }

    pub fn with_processors(release: Release, count: u16) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let options = CreateOptions {
            backend: Choice::StandIn(release),
            soft: SoftOptions::default(),
        };
        let name = format!("guest-items-{number}");
        let noted = Arc::default();
        let backend = Noting {
            inner: Arc::clone(Vm::create(&name, &options).unwrap().backend()),
            noted: Arc::clone(&noted),
        };
        let vm = Vm::with_backend(&name, Arc::new(backend));
        vm.set_topology(1, count, 1).unwrap();
        vm.setup_memory(MEMORY).unwrap();
        for id in 0..count {
            vm.vcpu(id.into()).activate().unwrap();
            vm.vcpu(id.into()).reset().unwrap();
        }
        vm.suspend_all_cpus().unwrap();
        let mevent = Arc::new(Mevent::new().unwrap());
        Self {
            noted,
            stub: Stub::create(&vm).unwrap(),
            vcpus: Arc::new(Vcpus::new(vm.clone(), mevent, count)),
            vm,
        }
    }

    pub fn processors(&self) -> Processors<'_> {
        Processors::new(&self.vm, &self.vcpus, Some(&self.stub), Vendor::Amd)
    }

    pub fn vcpu(&self) -> Vcpu {
        self.vm.vcpu(0)
    }

    /// Lays out a guest and puts its processor at its beginning.
    pub fn start(&self, case: &Case) {
        let memory = self.vm.memory();
        memory.write(CODE, &code(case)).unwrap();
        memory.write(HANDLERS, &handlers()).unwrap();
        // FCW rounds up, with some exceptions masked; MXCSR rounds down, with its flags.
        memory.write(DATA, &0x0b7f_u16.to_le_bytes()).unwrap();
        memory.write(DATA + 4, &0x3fa5_u32.to_le_bytes()).unwrap();
        let pattern: Vec<u8> = (0..0x48).map(|n| 0x11 + n * 3).collect();
        memory.write(DATA + 8, &pattern).unwrap();
        for (n, descriptor) in [
            0,
            0x00af_9b00_0000_ffff_u64,
            0x00cf_9300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
        ]
        .iter()
        .enumerate()
        {
            memory
                .write(GDT + n as u64 * 8, &descriptor.to_le_bytes())
                .unwrap();
        }
        let frame = [CODE, 0x1b, FLAGS.bits(), STACK, 0x23];
        memory.write(TO_USER, &[0x48, 0xcf]).unwrap();
        for (n, value) in frame.iter().enumerate() {
            let at = STACK - 40 + n as u64 * 8;
            memory.write(at, &value.to_le_bytes()).unwrap();
        }
        memory.write(TSS + 4, &RING0_STACK.to_le_bytes()).unwrap();
        for (index, vector) in [2, INTERRUPT, GP].into_iter().enumerate() {
            let handler = (HANDLERS + index as u64 * 32) as u16;
            let mut gate = [0; 16];
            gate[..2].copy_from_slice(&handler.to_le_bytes());
            gate[2] = 0x08;
            gate[5] = 0x8e;
            memory.write(IDT + u64::from(vector) * 16, &gate).unwrap();
        }
        for (table, entry) in [
            (TABLES, TABLES + 0x1007),
            (TABLES + 0x1000, TABLES + 0x2007),
            (TABLES + 0x2000, 0x87),
        ] {
            memory.write(table, &entry.to_le_bytes()).unwrap();
        }
        self.set_mode(case);
    }

    fn set_mode(&self, case: &Case) {
        let vcpu = self.vcpu();
        let mut cr4_value = Cr4::FXSR | Cr4::XMM;
        cr4_value.set(Cr4::XSAVE, case.xcr0.is_some());
        let user = case.mode == Mode::User;
        let (cr0_value, pae, efer, code) = match case.mode {
            Mode::Real => (Cr0::NE, Cr4::empty(), Efer::empty(), 0x9b),
            Mode::Protected => (
                Cr0::NE | Cr0::PE,
                Cr4::empty(),
                Efer::empty(),
                access_rights::CODE32,
            ),
            Mode::Long | Mode::User => (
                Cr0::NE | Cr0::PE | Cr0::PG,
                Cr4::PAE,
                Efer::LME | Efer::LMA,
                access_rights::CODE64,
            ),
        };
        let limit = if case.mode == Mode::Real {
            0xffff
        } else {
            u32::MAX
        };
        let data = if case.mode == Mode::Real {
            access_rights::DATA16
        } else {
            access_rights::DATA32
        };
        vcpu.set_registers(&[
            (VM_REG_GUEST_CR0, cr0_value.bits()),
            (VM_REG_GUEST_CR3, TABLES),
            (VM_REG_GUEST_CR4, (cr4_value | pae).bits()),
            (VM_REG_GUEST_EFER, efer.bits()),
            (VM_REG_GUEST_RFLAGS, FLAGS.bits()),
            (VM_REG_GUEST_RSP, STACK - 40),
            (VM_REG_GUEST_RIP, if user { TO_USER } else { CODE }),
            (VM_REG_GUEST_R13, 0x1313),
            (VM_REG_GUEST_CR2, 0x2222),
            (VM_REG_GUEST_DR0, 0xd0d0),
        ])
        .unwrap();
        let data_segments = [VM_REG_GUEST_SS, VM_REG_GUEST_DS, VM_REG_GUEST_ES];
        for register in data_segments {
            vcpu.set_desc(register, SegDesc::new(0, limit, data))
                .unwrap();
            vcpu.set_register(register, 0x10).unwrap();
        }
        vcpu.set_desc(VM_REG_GUEST_CS, SegDesc::new(0, limit, code))
            .unwrap();
        vcpu.set_register(VM_REG_GUEST_CS, 0x08).unwrap();
        vcpu.set_desc(
            VM_REG_GUEST_TR,
            SegDesc::new(TSS, 103, access_rights::TSS_BUSY),
        )
        .unwrap();
        vcpu.set_desc(VM_REG_GUEST_GDTR, SegDesc::new(GDT, 39, 0))
            .unwrap();
        vcpu.set_desc(VM_REG_GUEST_IDTR, SegDesc::new(IDT, 0xfff, 0))
            .unwrap();
        if case.waits == Waits::Lapic {
            vcpu.write_kernemu(0xfee0_00f0, 4, 0x1ff).unwrap();
        }
    }

    /// Runs until the guest comes to a point, and holds it behind that.
    pub fn run(&self) {
        let vcpu = self.vcpu();
        vcpu.resume_cpu().unwrap();
        let (mut exit, mut cpuset) = (VmExit::default(), CpuSet::new());
        loop {
            match vcpu.run(&mut exit, &mut cpuset) {
                Err(error) if error.errno.0 == libc::EINTR => continue,
                other => other.unwrap(),
            }
            match exit.exitcode {
                VM_EXITCODE_INOUT if exit.inout().port == POINT => break,
                VM_EXITCODE_BOGUS | VM_EXITCODE_REQIDLE => {}
                code => panic!("exit {code} at {:#x}", exit.rip),
            }
        }
        vcpu.suspend_cpu().unwrap();
        Runner::with(&self.vm, &self.vcpus, |runner| runner.bounce(&vcpu)).unwrap();
    }

    fn queue(&self, waits: Waits) {
        let vcpu = self.vcpu();
        let everything = waits == Waits::Everything;
        if waits == Waits::Nmi || everything {
            vcpu.inject_nmi().unwrap();
        }
        if waits == Waits::Interrupt {
            vcpu.set_intinfo(VM_INTINFO_VALID | u64::from(INTERRUPT))
                .unwrap();
        }
        if waits == Waits::Lapic {
            vcpu.lapic_irq(INTERRUPT.into()).unwrap();
        }
        if waits == Waits::Exception || everything {
            vcpu.inject_exception(GP.into(), Some(0), false).unwrap();
        }
    }

    /// A guest that has come to its point.
    pub fn at_point(release: Release, case: &Case) -> Self {
        let machine = Self::new(release);
        machine.start(case);
        machine.run();
        let ring = machine.vcpu().get_desc(VM_REG_GUEST_SS).unwrap().access >> 5 & 3;
        assert_eq!(ring == 3, case.mode == Mode::User);
        machine.queue(case.waits);
        machine
    }

    /// What the guest sees behind the point.
    pub fn results(&self) -> Vec<u8> {
        self.run();
        let mut results = vec![0; (RESULTS.end - RESULTS.start) as usize];
        self.vm.memory().read(RESULTS.start, &mut results).unwrap();
        results
    }

    pub fn save(&self) -> Vec<(Item, Vec<u8>)> {
        save_kernel(&self.processors()).unwrap()
    }

    /// Another VM that goes on from what was saved of this one.
    pub fn restored(&self, release: Release, saved: &[(Item, Vec<u8>)]) -> Self {
        let other = Self::new(release);
        other.restore(&self.vm, saved);
        other
    }

    pub fn restore(&self, from: &Vm, saved: &[(Item, Vec<u8>)]) {
        let mut memory = vec![0; MEMORY as usize];
        from.memory().read(0, &mut memory).unwrap();
        self.vm.memory().write(0, &memory).unwrap();
        for (item, bytes) in saved {
            assert_eq!(item.restore(&self.processors(), bytes).unwrap(), 0);
        }
        self.vm.restore_time().unwrap();
    }

    /// All that userland can see of the processor.
    pub fn registers(&self) -> (Vec<u64>, Vec<SegDesc>, (u64, u64), Vec<u8>) {
        let vcpu = self.vcpu();
        let numbers: Vec<i32> = (VM_REG_GUEST_RAX..=VM_REG_GUEST_CR2)
            .chain([VM_REG_GUEST_INTR_SHADOW])
            .chain(VM_REG_GUEST_DR0..=VM_REG_GUEST_DR6)
            .filter(|number| ![VM_REG_GUEST_IDTR, VM_REG_GUEST_GDTR].contains(number))
            .collect();
        let registers = vcpu.get_registers(&numbers).unwrap();
        let descriptors = (VM_REG_GUEST_ES..=VM_REG_GUEST_GDTR)
            .map(|number| vcpu.get_desc(number).unwrap())
            .collect();
        let vmcx = self.vm.snapshot_save(STRUCT_VMCX, VMCX_LIMIT).unwrap();
        (registers, descriptors, vcpu.get_intinfo().unwrap(), vmcx)
    }
}
