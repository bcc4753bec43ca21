// SPDX-License-Identifier: BSD-2-Clause

//! The names of the counters (`vm_get_stat_desc` of `lib/libvmmapi/vmmapi.c`). Their values are a vCPU's.

use vmm_abi::*;

use super::{Vm, c_string};

impl Vm {
    /// `vm_get_stat_desc`: the name of a counter; `None` behind the last.
    pub fn stat_desc(&self, index: i32) -> Option<String> {
        let mut arg = VmStatDesc {
            index,
            ..Default::default()
        };
        let result = self.ioctl("vm_get_stat_desc", VM_STAT_DESC, &mut arg, || {
            format!("counter {index}")
        });
        result.is_ok().then(|| c_string(&arg.desc))
    }

    /// The names of all counters, in the order of their numbers.
    pub fn stat_names(&self) -> Vec<String> {
        let mut names = self.inner.stat_names.lock();
        names
            .get_or_insert_with(|| (0..).map_while(|index| self.stat_desc(index)).collect())
            .clone()
    }
}
