// SPDX-License-Identifier: BSD-2-Clause

//! What the differential test does not reach: the checks before an instruction, images, and exceptions across instructions.

use iced_x86::{Decoder, DecoderOptions};

use super::*;

const CR0: u64 = cr0::NE | cr0::MP;
const CR4: u64 = cr4::OSFXSR | cr4::OSXMMEXCPT;

struct Bench {
    state: FpuState,
    gprs: [u64; 16],
    rflags: u64,
    memory: OperandMemory,
}

impl Bench {
    fn new() -> Self {
        let mut state = FpuState::new();
        state.fninit();
        Self {
            state,
            gprs: [0; 16],
            rflags: 2,
            memory: OperandMemory::new(),
        }
    }

    fn run(&mut self, code: &[u8]) -> Result<Outcome, Fault> {
        let op = decode(&Decoder::new(64, code, DecoderOptions::NONE).decode())
            .as_ref()
            .map(select)
            .expect("an instruction of the units");
        check(op.class(), CR0, CR4, &self.state)?;
        op.exec(
            &mut self.state,
            &mut self.gprs,
            &mut self.rflags,
            &mut self.memory,
        )
        .map_err(|fault| fault.with_cr4(CR4))
    }
}

#[test]
fn addps_adds_four_floats() {
    let mut bench = Bench::new();
    bench.state.xmm[3] = 0x3f80_0000_4000_0000_4040_0000_4080_0000;
    bench.state.xmm[9] = 0x3f80_0000_3f80_0000_3f80_0000_3f80_0000;
    assert_eq!(bench.run(&[0x41, 0x0f, 0x58, 0xd9]), Ok(Outcome::Done));
    assert_eq!(
        bench.state.xmm[3],
        0x4000_0000_4040_0000_4080_0000_40a0_0000
    );
    assert_eq!(bench.state.mxcsr, MXCSR_DEFAULT);
}

#[test]
fn divps_by_zero_unmasked_is_xm_and_changes_flags_only() {
    let mut bench = Bench::new();
    bench.state.set_mxcsr(MXCSR_DEFAULT & !(1 << 9)).unwrap();
    bench.state.xmm[0] = 0x3f80_0000;
    assert_eq!(bench.run(&[0x0f, 0x5e, 0xc1]), Err(Fault::Xm));
    assert_eq!(bench.state.xmm[0], 0x3f80_0000);
    assert_eq!(
        bench.state.mxcsr & 0x3f,
        0x05,
        "0/0 in the other elements is invalid"
    );
    assert_eq!(Fault::Xm.with_cr4(cr4::OSFXSR), Fault::Ud);
}

#[test]
fn x87_exception_is_reported_by_the_next_waiting_instruction() {
    let mut bench = Bench::new();
    bench.memory.bytes[..2].copy_from_slice(&0x37b_u16.to_le_bytes());
    bench.memory.rip = 0x1234;
    bench.run(&[0xd9, 0x2e]).unwrap(); // fldcw: divide by zero unmasked
    bench.run(&[0xd9, 0xe8]).unwrap(); // fld1
    bench.run(&[0xd9, 0xee]).unwrap(); // fldz
    assert_eq!(bench.run(&[0xdc, 0xf9]), Ok(Outcome::Done)); // fdiv st1, st0
    assert!(bench.state.x87_pending());
    assert_eq!((bench.state.fip, bench.state.fop), (0x1234, 0x4f9));
    assert_eq!(bench.run(&[0xd9, 0xe8]), Err(Fault::Mf));
    assert_eq!(bench.run(&[0xdf, 0xe0]), Ok(Outcome::Done)); // fnstsw ax
    assert_eq!(bench.gprs[0] & 0x84, 0x84);
    assert_eq!(bench.run(&[0xdb, 0xe2]), Ok(Outcome::Done)); // fnclex
    assert_eq!(bench.run(&[0x9b]), Ok(Outcome::Done));
}

#[test]
fn unmasked_stack_underflow_suppresses_the_store() {
    let mut bench = Bench::new();
    bench.state.cw = 0x37e;
    assert_eq!(bench.run(&[0xdd, 0x1e]), Ok(Outcome::NoStore)); // fstp qword [rsi]
    assert!(bench.state.x87_pending());
}

#[test]
fn mmx_aliases_the_physical_registers() {
    let mut bench = Bench::new();
    bench.run(&[0xd9, 0xe8]).unwrap(); // fld1, into R7
    bench.run(&[0x0f, 0x6f, 0xc7]).unwrap(); // movq mm0, mm7
    assert_eq!(bench.state.top(), 0);
    assert_eq!(bench.state.tags, 0xff);
    assert_eq!(
        bench.state.st[0][..10],
        [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0xff]
    );
    bench.run(&[0x0f, 0x77]).unwrap(); // emms
    assert_eq!(bench.state.tags, 0);
}

#[test]
fn checks_come_in_the_processors_order() {
    let state = FpuState::new();
    assert_eq!(check(Class::Sse, CR0, 0, &state), Err(Fault::Ud));
    assert_eq!(
        check(Class::Sse, CR0 | cr0::TS, CR4, &state),
        Err(Fault::Nm)
    );
    assert_eq!(
        check(Class::Mmx, CR0 | cr0::EM | cr0::TS, CR4, &state),
        Err(Fault::Ud)
    );
    assert_eq!(
        check(Class::X87, CR0 | cr0::EM, CR4, &state),
        Err(Fault::Nm)
    );
    assert_eq!(check(Class::Wait, cr0::TS, CR4, &state), Ok(()));
    assert_eq!(
        check(Class::Wait, cr0::TS | cr0::MP, CR4, &state),
        Err(Fault::Nm)
    );
    assert_eq!(check(Class::Integer, cr0::EM | cr0::TS, 0, &state), Ok(()));
    let pending = FpuState {
        sw: 0x8081,
        ..FpuState::new()
    };
    assert_eq!(check(Class::Mmx, CR0, CR4, &pending), Err(Fault::Mf));
    assert_eq!(check(Class::X87, 0, CR4, &pending), Err(Fault::Ferr));
    assert_eq!(check(Class::X87NoWait, CR0, CR4, &pending), Ok(()));
    assert_eq!(check(Class::Sse, CR0, CR4, &pending), Ok(()));
}

/// A state in which every field differs from its neighbours.
fn busy() -> FpuState {
    let mut state = FpuState::new();
    state.cw = 0x27f;
    state.sw = 0x3000;
    state.tags = 0xa5;
    state.fop = 0x123;
    state.fip = 0x1_2345_6789_abcd;
    state.fdp = 0x1_fedc_ba98_7654;
    state.mxcsr = 0x9fc0;
    for (index, st) in state.st.iter_mut().enumerate() {
        st[..10].fill(index as u8 + 1);
    }
    for (index, xmm) in state.xmm.iter_mut().enumerate() {
        *xmm = u128::MAX / (index as u128 + 3);
    }
    state
}

#[test]
fn fxsave_and_fxrstor_return_what_they_were_given() {
    let state = busy();
    let mut image = [0xee; 512];
    state.fxsave(&mut image, Form::Long64);
    let mut back = FpuState::new();
    back.fxrstor(&image, Form::Long64).unwrap();
    assert_eq!(back, state);
    assert!(
        image[416..].iter().all(|&byte| byte == 0xee),
        "bytes past XMM15 are left alone"
    );
    image[26] = 1;
    assert_eq!(back.fxrstor(&image, Form::Long64), Err(Fault::Gp));
    assert_eq!(back, state);
}

#[test]
fn legacy_fxsave_leaves_the_upper_xmm_registers_alone() {
    let mut image = [0xee; 512];
    busy().fxsave(&mut image, Form::Legacy);
    assert!(image[288..].iter().all(|&byte| byte == 0xee));
    let mut back = FpuState::new();
    back.fxrstor(&image, Form::Legacy).unwrap();
    assert_eq!((back.fip, back.fdp), (0x6789_abcd, 0xba98_7654));
    assert_eq!(back.xmm[8], 0);
}

#[test]
fn xrstor_initialises_what_the_image_lacks_and_refuses_bad_headers() {
    let state = busy();
    let mut image = [0; XSAVE_LEN];
    state.xsave(&mut image, 2, Form::Long64);
    assert_eq!(image[512], 2);
    let mut back = busy();
    back.xrstor(&image, 3, 3, Form::Long64).unwrap();
    assert_eq!((back.cw, back.tags, back.st), (0x37f, 0, [[0; 16]; 8]));
    assert_eq!(back.xmm, state.xmm);
    for (at, value) in [(512, 4), (520, 1), (535, 1)] {
        let mut bad = image;
        bad[at] = value;
        assert_eq!(
            back.clone().xrstor(&bad, 3, 3, Form::Long64),
            Err(Fault::Gp),
            "byte {at}"
        );
    }
}

#[test]
fn fnstenv_and_fldenv_keep_the_registers_where_they_are() {
    let mut bench = Bench::new();
    bench.run(&[0xd9, 0xe8]).unwrap(); // fld1
    bench.run(&[0xd9, 0xee]).unwrap(); // fldz
    let before = bench.state.clone();
    bench.run(&[0xd9, 0x36]).unwrap(); // fnstenv [rsi]
    assert_eq!(
        bench.memory.bytes[8..10],
        0x1fff_u16.to_le_bytes(),
        "R7 valid, R6 zero"
    );
    let environment = bench.memory.clone();
    bench.run(&[0xdb, 0xe3]).unwrap(); // fninit
    bench.memory = environment;
    bench.run(&[0xd9, 0x26]).unwrap(); // fldenv [rsi]
    assert_eq!(bench.state, before);
}
