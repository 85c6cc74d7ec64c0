#pragma once

// <linux/kvm.h>, fit for C++: older kernel headers wrap a flexible array in a struct with an empty struct inside. That
// takes no room in C but one byte in C++, which moves the array and, through the size, changes the request numbers.
#include <linux/stddef.h>
#undef __DECLARE_FLEX_ARRAY
#define __DECLARE_FLEX_ARRAY(TYPE, NAME) TYPE NAME[0]
#include <linux/kvm.h>

static_assert(sizeof(kvm_cpuid2) == 8 && sizeof(kvm_msrs) == 8 && sizeof(kvm_msr_list) == 4);
static_assert(sizeof(kvm_irq_routing) == 8 && sizeof(kvm_signal_mask) == 4 && sizeof(kvm_xsave) == 4096);
static_assert(sizeof(kvm_nested_state) == 128);
