// SPDX-License-Identifier: BSD-2-Clause

//! A VM of the software vmm in another process, reached through its control socket.

use std::ops::Range;
use std::path::{Path, PathBuf};

use ::vmm::Errno;
use vmm_abi::{VM_GET_TOPOLOGY, VMMCTL_VM_DESTROY, iocparm_len};

use super::{Backend, HostMapping, Kind};
use crate::control::{ControlClient, ControlError};

/// The VM behind a control socket. Each request has a connection of its own, so that a process that falls silent or
/// starts anew costs one request only.
#[derive(Debug)]
pub struct Remote {
    rundir: PathBuf,
    name: String,
}

impl Remote {
    /// Finds the VM.
    ///
    /// # Errors
    ///
    /// `ENOENT` or `ECONNREFUSED` if no process has a VM of that name; `EOPNOTSUPP` if it is the kernel's; `EPROTO` for an
    /// answer of another form.
    pub fn open(rundir: &Path, name: &str) -> Result<Self, ControlError> {
        let remote = Self {
            rundir: rundir.to_owned(),
            name: name.to_owned(),
        };
        let mut topology = vec![0; iocparm_len(VM_GET_TOPOLOGY)];
        remote.call(VM_GET_TOPOLOGY, &mut topology, &mut [])?;
        Ok(remote)
    }

    fn call(
        &self,
        request: u64,
        arg: &mut [u8],
        buffers: &mut [&mut [u8]],
    ) -> Result<(), ControlError> {
        ControlClient::connect(&self.rundir, &self.name)?.ioctl(request, arg, buffers)
    }
}

impl Backend for Remote {
    fn kind(&self) -> Kind {
        Kind::Remote
    }

    fn ioctl(&self, request: u64, arg: &mut [u8], buffers: &mut [&mut [u8]]) -> Result<(), Errno> {
        self.call(request, arg, buffers)
            .map_err(|error| error.errno())
    }

    /// Memory of another process cannot be mapped over a socket.
    fn map_sysmem(&self, _gpa: u64, _len: u64) -> Result<HostMapping, Errno> {
        Err(Errno(libc::EOPNOTSUPP))
    }

    fn map_devmem(&self, _segment: &str, _len: u64) -> Result<HostMapping, Errno> {
        Err(Errno(libc::EOPNOTSUPP))
    }

    /// Nothing is mapped, so that nothing can have been written.
    fn memory_written(&self, _gpa: u64, _len: u64) {}

    fn populated(&self, _gpa: u64, _len: u64) -> Result<Vec<Range<u64>>, Errno> {
        Err(Errno(libc::EOPNOTSUPP))
    }

    /// Not known here: a client has no use for it.
    fn tsc_hz(&self) -> Option<u64> {
        None
    }

    fn destroy(&self) -> Result<(), Errno> {
        self.ioctl(
            VMMCTL_VM_DESTROY,
            &mut vec![0; iocparm_len(VMMCTL_VM_DESTROY)],
            &mut [],
        )
    }
}
