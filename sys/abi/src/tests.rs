// SPDX-License-Identifier: BSD-2-Clause

//! Behaviour of the few functions that the ABI has.

use zerocopy::{FromBytes, IntoBytes};

use crate::*;

#[test]
fn payload_set_replaces_the_whole_union() {
    let inst = VmExitInstEmul {
        gpa: 0xfee0_0000,
        gla: u64::MAX,
        ..Default::default()
    };
    let mut exit = VmExit::new(VM_EXITCODE_INST_EMUL, 0x1000, 3, inst);
    assert_eq!(exit.inst_emul(), inst);
    exit.u.set(VmInout {
        flags: 0x9,
        port: 0x3f8,
        eax: 7,
    });
    assert_eq!(
        exit.u.words,
        [
            u64::from(0x9u16) | 0x3f8 << 16 | 7 << 32,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0
        ]
    );
    assert!(exit.inout().is_in());
    assert_eq!(exit.inout().bytes(), 1);
}

#[test]
fn string_exits_of_14_are_a_prefix_of_those_of_15() {
    let new = VmInoutStr {
        count: 5,
        addrsize: 4,
        seg_desc: SegDesc::new(1, 2, 3),
        cs_base: 9,
        ..Default::default()
    };
    let (old, _) = v14::VmInoutStr::read_from_prefix(new.as_bytes()).expect("104 bytes hold 88");
    assert_eq!(
        (old.count, old.addrsize, old.seg_desc),
        (5, 4, SegDesc::new(1, 2, 3))
    );
}

#[test]
fn requests_are_distinct_and_carry_their_size() {
    for (i, (request, name)) in VM_REQUESTS.iter().enumerate() {
        assert!(
            VM_REQUESTS[..i].iter().all(|(other, _)| other != request),
            "{name}"
        );
        assert_eq!(
            request & IOC_VOID != 0,
            iocparm_len(*request) == 0,
            "{name}"
        );
    }
    assert_eq!(iocparm_len(VM_STATS), 544);
}

#[test]
fn access_rights_are_in_vmx_format() {
    let code = SegDesc::new(0, 0xffff_ffff, 0xa09b);
    assert!(
        code.present() && code.long() && code.granularity() && !code.def32() && !code.unusable()
    );
    assert_eq!((code.seg_type(), code.dpl()), (0x1b, 0));
    assert_eq!(SegDesc::new(0, 0, 0x60).dpl(), 3);
}
