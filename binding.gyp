{
  # The build that ships. CMakeLists.txt is the developer's build; a unit test keeps the two source lists the same.
  'targets': [
    {
      'target_name': 'nested_kvm',
      'sources': [
        'native/addon.cc',
        'native/event_fd.cc',
        'native/exit_hub.cc',
        'native/image_file.cc',
        'native/ioctl.cc',
        'native/kvm.cc',
        'native/loop_poll.cc',
        'native/mapping.cc',
        'native/memory_file.cc',
        'native/run_tick.cc',
        'native/scheduling.cc',
        'native/tap.cc',
        'native/vcpu.cc',
        'native/vcpu_thread.cc',
        'native/vm.cc',
      ],
      'include_dirs': ['<!(node -p "require(\'node-addon-api\').include_dir")'],
      'defines': ['NAPI_VERSION=9', 'NODE_ADDON_API_DISABLE_CPP_EXCEPTIONS'],
      'cflags': ['-Wall', '-Wextra', '-fvisibility=hidden'],
      # Node's own common.gypi asks for gnu++17 (Node 20) or gnu++20 (later).
      'cflags_cc!': ['-std=gnu++17'],
      'cflags_cc': ['-std=gnu++20', '-fno-exceptions', '-fno-rtti', '-fvisibility-inlines-hidden'],
      # The C++ runtime stays shared, as Node's own is: linked in, it would ask for a newer glibc than all the rest does.
      'ldflags': ['-Wl,-z,now', '-pthread'],
    },
  ],
}
