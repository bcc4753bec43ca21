//! The execution loop.

use crate::bus::Bus;
use crate::cpu::Cpu;
use crate::exit::Exit;

impl Cpu {
    /// Runs at most `limit` instructions, exactly: stopping after N and continuing is the same as not stopping.
    pub fn run(&mut self, _bus: &mut dyn Bus, limit: u64) -> Exit {
        if limit == 0 {
            return Exit::Limit;
        }
        Exit::Shutdown
    }

    /// Forgets all address translations.
    pub fn flush_tlb(&mut self) {}

    pub(crate) fn state_changed(&mut self) {}
}
