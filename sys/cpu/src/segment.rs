// SPDX-License-Identifier: BSD-2-Clause

//! Descriptors and segment loads (AMD APM volume 2, chapter 4).

use crate::cpu::{Cpu, slot};
use crate::state::{Seg, Segment, cr0, flag};
use crate::trap::{Trapped, vector};

/// The error code for a selector.
pub(crate) fn selector_error(selector: u16) -> u32 {
    u32::from(selector & !3)
}

impl Cpu {
    pub(crate) fn protected_mode(&self) -> bool {
        self.ctl.cr0 & cr0::PE != 0 && self.rflags & flag::VM == 0
    }

    /// Base and limit of the table that a selector points into.
    fn table_of(&self, selector: u16) -> Option<(u64, u32)> {
        if selector & 4 == 0 {
            return Some((self.gdtr.base, u32::from(self.gdtr.limit)));
        }
        let ldt = self.segs[Seg::Ldtr as usize];
        (!ldt.unusable()).then_some((ldt.base, ldt.limit))
    }

    /// Linear address of a selector's descriptor, or `None` if it lies outside of its table.
    pub(crate) fn descriptor_address(&self, selector: u16, size: u32) -> Option<u64> {
        let (base, limit) = self.table_of(selector)?;
        let offset = u32::from(selector & !7);
        (offset + size - 1 <= limit).then(|| base.wrapping_add(u64::from(offset)))
    }

    /// Reads a descriptor for an instruction that faults with `vector` where there is none.
    pub(crate) fn descriptor(&mut self, selector: u16, vector: u8) -> Result<u64, Trapped> {
        match self.descriptor_address(selector, 8) {
            Some(la) => self.sys_load(la, 3),
            None => Err(self.fault(vector, Some(selector_error(selector)))),
        }
    }

    /// Reads a descriptor for LAR and its kin: `None` for a null selector or one outside of its table.
    pub(crate) fn peek_descriptor(&mut self, selector: u16) -> Result<Option<u64>, Trapped> {
        if selector & !3 == 0 {
            return Ok(None);
        }
        match self.descriptor_address(selector, 8) {
            Some(la) => self.sys_load(la, 3).map(Some),
            None => Ok(None),
        }
    }

    /// A descriptor's limit in bytes.
    pub(crate) fn descriptor_limit(raw: u64) -> u32 {
        let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
        if raw >> 55 & 1 != 0 {
            limit << 12 | 0xfff
        } else {
            limit
        }
    }

    /// A descriptor as a hidden part.
    pub(crate) fn hidden(selector: u16, raw: u64) -> Segment {
        Segment {
            selector,
            base: raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000,
            limit: Self::descriptor_limit(raw),
            access: (raw >> 40 & 0xf0ff) as u32,
        }
    }

    /// Sets the accessed bit of a code or data descriptor.
    pub(crate) fn mark_accessed(&mut self, selector: u16, raw: u64) -> Result<u64, Trapped> {
        if raw >> 40 & 1 == 0
            && let Some(la) = self.descriptor_address(selector, 8)
        {
            self.sys_store(la.wrapping_add(5), raw >> 40 & 0xff | 1, 0, false)?;
        }
        Ok(raw | 1 << 40)
    }

    /// Puts a hidden part in place.
    pub(crate) fn put_segment(&mut self, seg: Seg, value: Segment) {
        if seg == Seg::Cs && self.segs[Seg::Cs as usize].base != value.base {
            self.code_moved();
        }
        self.segs[seg as usize] = value;
        if (seg as usize) < 6 {
            self.regs[slot::SEG_BASE + seg as u8] = value.base;
            self.state_changed();
        }
    }

    /// A segment register in real or virtual-8086 mode.
    pub(crate) fn put_real_segment(&mut self, seg: Seg, selector: u16) {
        let v8086 = self.rflags & flag::VM != 0;
        let old = self.segs[seg as usize];
        let value = if v8086 {
            Segment {
                selector,
                base: u64::from(selector) << 4,
                limit: 0xffff,
                access: 0xf3,
            }
        } else {
            // Limit and attributes stay what they were ("unreal mode"), but the segment becomes usable.
            let access = if seg == Seg::Cs {
                0x9b
            } else {
                old.access & !Segment::UNUSABLE & !0x60 | 0x93
            };
            Segment {
                selector,
                base: u64::from(selector) << 4,
                limit: old.limit,
                access,
            }
        };
        self.put_segment(seg, value);
    }

    /// Loads DS, ES, FS, GS or SS as MOV and POP do.
    pub(crate) fn load_segment(&mut self, seg: Seg, selector: u16) -> Result<(), Trapped> {
        if !self.protected_mode() {
            self.put_real_segment(seg, selector);
            return Ok(());
        }
        let value = self.data_segment(seg, selector, self.cpl(), vector::GP)?;
        self.put_segment(seg, value);
        Ok(())
    }

    /// Checks a data or stack segment for use at `cpl`; `bad` is the vector of most faults (#GP, or #TS in a task switch).
    pub(crate) fn data_segment(
        &mut self,
        seg: Seg,
        selector: u16,
        cpl: u8,
        bad: u8,
    ) -> Result<Segment, Trapped> {
        let rpl = (selector & 3) as u8;
        let error = Some(selector_error(selector));
        if selector & !3 == 0 {
            if seg == Seg::Ss {
                // 64-bit code below CPL 3 may use a null stack segment.
                if !self.code64() || cpl == 3 || rpl != cpl {
                    return Err(self.fault(bad, error));
                }
                return Ok(Segment {
                    selector,
                    base: 0,
                    limit: 0,
                    access: Segment::UNUSABLE | u32::from(cpl) << 5,
                });
            }
            // AMD leaves base and limit of a segment that is made null; FS and GS bases must survive in 64-bit mode.
            let base = if self.long_mode() && matches!(seg, Seg::Fs | Seg::Gs) {
                self.segs[seg as usize].base
            } else {
                0
            };
            return Ok(Segment {
                selector,
                base,
                limit: 0,
                access: Segment::UNUSABLE,
            });
        }
        let raw = self.descriptor(selector, bad)?;
        let access = (raw >> 40 & 0xff) as u32;
        let dpl = (access >> 5 & 3) as u8;
        let code = access & 8 != 0;
        let readable = access & 2 != 0;
        let fits = if seg == Seg::Ss {
            rpl == cpl && dpl == cpl && !code && readable
        } else {
            let conforming = code && access & 4 != 0;
            (!code || readable) && (conforming || dpl >= cpl.max(rpl))
        };
        if access & Segment::S == 0 || !fits {
            return Err(self.fault(bad, error));
        }
        if access & Segment::P == 0 {
            return Err(self.fault(
                if seg == Seg::Ss {
                    vector::SS
                } else {
                    vector::NP
                },
                error,
            ));
        }
        let raw = self.mark_accessed(selector, raw)?;
        Ok(Self::hidden(selector, raw))
    }

    /// Reads a system descriptor, 16 bytes long in long mode.
    fn system_segment(&mut self, selector: u16, bad: u8) -> Result<(u64, Segment), Trapped> {
        let size = if self.long_mode() { 16 } else { 8 };
        let Some(la) = self.descriptor_address(selector, size) else {
            return Err(self.fault(bad, Some(selector_error(selector))));
        };
        let raw = self.sys_load(la, 3)?;
        let mut segment = Self::hidden(selector, raw);
        if size == 16 {
            segment.base |= self.sys_load(la.wrapping_add(8), 3)? << 32;
            if !Self::canonical(segment.base) {
                return Err(self.fault(bad, Some(selector_error(selector))));
            }
        }
        Ok((la, segment))
    }

    /// LLDT.
    pub(crate) fn load_ldtr(&mut self, selector: u16) -> Result<(), Trapped> {
        if selector & !3 == 0 {
            self.segs[Seg::Ldtr as usize] = Segment {
                selector,
                access: Segment::UNUSABLE,
                ..Segment::default()
            };
            return Ok(());
        }
        let error = selector_error(selector);
        if selector & 4 != 0 {
            return Err(self.gp(error));
        }
        let (_, segment) = self.system_segment(selector, vector::GP)?;
        if segment.access & 0x1f != 2 {
            return Err(self.gp(error));
        }
        if segment.access & Segment::P == 0 {
            return Err(self.fault(vector::NP, Some(error)));
        }
        self.segs[Seg::Ldtr as usize] = segment;
        Ok(())
    }

    /// LTR: the TSS must be available, and becomes busy.
    pub(crate) fn load_tr(&mut self, selector: u16) -> Result<(), Trapped> {
        let error = selector_error(selector);
        if selector & !3 == 0 || selector & 4 != 0 {
            return Err(self.gp(error));
        }
        let (la, mut segment) = self.system_segment(selector, vector::GP)?;
        let kind = segment.access & 0x1f;
        if kind != 9 && (kind != 1 || self.long_mode()) {
            return Err(self.gp(error));
        }
        if segment.access & Segment::P == 0 {
            return Err(self.fault(vector::NP, Some(error)));
        }
        segment.access |= 2;
        self.sys_store(
            la.wrapping_add(5),
            u64::from(segment.access & 0xff),
            0,
            false,
        )?;
        self.segs[Seg::Tr as usize] = segment;
        Ok(())
    }

    /// Checks a code segment as the target of a far transfer. `gate`: through a gate (no RPL check; less privilege never).
    pub(crate) fn code_segment(
        &mut self,
        selector: u16,
        raw: u64,
        cpl: u8,
        gate: bool,
    ) -> Result<Segment, Trapped> {
        let error = selector_error(selector);
        let access = (raw >> 40) as u32;
        let dpl = (access >> 5 & 3) as u8;
        let rpl = (selector & 3) as u8;
        if access & 0x18 != 0x18 {
            return Err(self.gp(error));
        }
        let conforming = access & 4 != 0;
        let fits = if gate || conforming {
            dpl <= cpl
        } else {
            dpl == cpl && rpl <= cpl
        };
        // L and D together are reserved.
        if !fits || self.long_mode() && raw >> 53 & 3 == 3 {
            return Err(self.gp(error));
        }
        if access & Segment::P == 0 {
            return Err(self.fault(vector::NP, Some(error)));
        }
        let raw = self.mark_accessed(selector, raw)?;
        Ok(Self::hidden(selector, raw))
    }

    /// Checks an instruction pointer against the code segment that it goes with.
    pub(crate) fn check_rip(&mut self, cs: &Segment, rip: u64) -> Result<(), Trapped> {
        let long = self.long_mode() && cs.access & Segment::L != 0;
        let good = if long {
            Self::canonical(rip)
        } else {
            rip <= u64::from(cs.limit)
        };
        if good { Ok(()) } else { Err(self.gp(0)) }
    }

    /// Puts CS in place with privilege `cpl`.
    pub(crate) fn put_code(&mut self, cs: Segment, cpl: u8, rip: u64) {
        let cs = Segment {
            selector: cs.selector & !3 | u16::from(cpl),
            ..cs
        };
        self.rip = rip;
        self.put_segment(Seg::Cs, cs);
    }
}
