// SPDX-License-Identifier: BSD-2-Clause

//! `sys/amd64/vmm/vmm_snapshot.c`: saving and restoring the devices, one at a time.

use super::*;

impl Chipset {
    /// The kernel's struct of a device. `cpus` are the vCPUs that exist, which local APICs are saved for.
    pub fn save(&self, now: Sbt, device: Device, cpus: &CpuSet) -> Vec<u8> {
        match device {
            Device::Vioapic => self.ioapic.save(),
            Device::Vlapic => {
                let mut out = Writer::new(vlapic::STATE_LEN * cpus.iter().count());
                self.existing(cpus)
                    .for_each(|(_, lapic)| lapic.save(now, &mut out));
                out.finish()
            }
            Device::Vhpet => self.hpet.save(now),
            Device::Vatpic => self.pic.save(),
            Device::Vatpit => self.pit.save(now),
            Device::Vpmtmr => self.pmtmr.save(now),
            Device::Vrtc => self.rtc.save(),
        }
    }

    /// What that struct forgets, in a struct of ours.
    pub fn save_extras(&self, now: Sbt, device: Device, cpus: &CpuSet) -> Vec<u8> {
        match device {
            Device::Vioapic => self.ioapic.save_extras(),
            Device::Vlapic => {
                let mut out = Writer::extras(device, vlapic::EXTRAS_LEN * cpus.iter().count());
                self.existing(cpus)
                    .for_each(|(_, lapic)| lapic.save_extras(now, &mut out));
                out.finish()
            }
            Device::Vhpet => self.hpet.save_extras(now),
            // The kernel's struct has it all.
            Device::Vatpic => Writer::extras(device, 0).finish(),
            Device::Vatpit => self.pit.save_extras(now),
            Device::Vpmtmr => self.pmtmr.save_extras(now),
            Device::Vrtc => self.rtc.save_extras(now),
        }
    }

    /// Replaces a device by what [`Self::save`] or a kernel wrote; `cpus` has to be the set it was saved with.
    /// Timers count on from `now`. On an error nothing has changed.
    pub fn restore(
        &mut self,
        now: Sbt,
        device: Device,
        cpus: &CpuSet,
        bytes: &[u8],
    ) -> Result<(), StateError> {
        match device {
            Device::Vioapic => self.ioapic = Vioapic::restore(bytes)?,
            Device::Vlapic => {
                let count = self.existing(cpus).count();
                Reader::new(device.name(), bytes, vlapic::STATE_LEN * count)?;
                let restored = self
                    .existing(cpus)
                    .zip(bytes.chunks_exact(vlapic::STATE_LEN));
                let restored = restored
                    .map(|((vcpu, _), bytes)| Ok((vcpu, Vlapic::restore(vcpu as u16, now, bytes)?)))
                    .collect::<Result<Vec<_>, StateError>>()?;
                self.replace_lapics(restored);
            }
            Device::Vhpet => self.hpet = Vhpet::restore(now, bytes)?,
            Device::Vatpic => self.pic = Vatpic::restore(bytes)?,
            Device::Vatpit => self.pit = Vatpit::restore(now, bytes)?,
            Device::Vpmtmr => self.pmtmr = Vpmtmr::restore(now, bytes)?,
            Device::Vrtc => self.rtc = Vrtc::restore(now, bytes)?,
        }
        self.update_tmr();
        Ok(())
    }

    /// Adds what [`Self::save_extras`] wrote, after [`Self::restore`] of the same device at the same `now`.
    pub fn restore_extras(
        &mut self,
        now: Sbt,
        device: Device,
        cpus: &CpuSet,
        bytes: &[u8],
    ) -> Result<(), StateError> {
        match device {
            Device::Vioapic => self.ioapic.restore_extras(bytes),
            Device::Vlapic => {
                let mut restored = self
                    .existing(cpus)
                    .map(|(vcpu, lapic)| (vcpu, lapic.clone()))
                    .collect::<Vec<_>>();
                let mut reader =
                    Reader::extras(device, bytes, vlapic::EXTRAS_LEN * restored.len())?;
                for (_, lapic) in &mut restored {
                    lapic.restore_extras(now, &mut reader)?;
                }
                self.replace_lapics(restored);
                Ok(())
            }
            Device::Vhpet => self.hpet.restore_extras(now, bytes),
            Device::Vatpic => Reader::extras(device, bytes, 0).map(drop),
            Device::Vatpit => self.pit.restore_extras(now, bytes),
            Device::Vpmtmr => self.pmtmr.restore_extras(now, bytes),
            Device::Vrtc => self.rtc.restore_extras(now, bytes),
        }
    }

    fn existing(&self, cpus: &CpuSet) -> impl Iterator<Item = (usize, &Vlapic)> {
        cpus.iter()
            .filter_map(|vcpu| Some((vcpu, self.lapics.cpus.get(vcpu)?)))
    }

    /// Puts restored local APICs in place. Their processors look for what is pending in them.
    fn replace_lapics(&mut self, restored: Vec<(usize, Vlapic)>) {
        for (vcpu, mut lapic) in restored {
            if let Some(slot) = self.lapics.cpus.get_mut(vcpu) {
                lapic.counts = slot.counts;
                if lapic.x2apic() {
                    self.lapics.has_x2apic.insert(vcpu);
                }
                *slot = lapic;
                self.lapics.notify(vcpu);
            }
        }
        self.update_tmr();
    }
}
