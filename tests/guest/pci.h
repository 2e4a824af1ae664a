/* PCI configuration space and base address registers. */
#pragma once
#include "tiny.h"

struct pci_function { u8 bus, device, function; };
struct pci_bar { u64 base, size; u8 wide, prefetchable; };

enum { PCI_COMMAND = 4, PCI_STATUS = 6, PCI_BAR0 = 0x10, PCI_CAPABILITIES = 0x34,
       PCI_CAP_MSIX = 0x11, PCI_CAP_VENDOR = 0x09 };

u32 pci_read(struct pci_function fn, u16 offset, u8 bytes);
void pci_write(struct pci_function fn, u16 offset, u8 bytes, u32 value);
/* The next function from *fn on, by bus number 0; 0 if there are no more. Begin with device 0, function 0. */
int pci_next(struct pci_function *fn);
/* The size by probing; 0 if the register is not there. Memory registers only. */
struct pci_bar pci_bar(struct pci_function fn, u8 index);
/* The offset of a capability after `from` (0: the first), 0 if there is none. */
u8 pci_capability(struct pci_function fn, u8 id, u8 from);
