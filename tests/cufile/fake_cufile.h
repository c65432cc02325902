#pragma once

/// What the library of fake_cufile.cpp was asked to do, and what it is to refuse.
struct FakeCufile {
  bool switches[16] = {};  ///< by number of the parameter
  bool refuses_driver = false;
  bool refuses_file = false;
  bool allowed_compatibility_at_open = false;
  long users = 0;
  int files = 0;
  int memories = 0;
};
