"""OpenVINO's intermediate representation: for processors by Intel, AMD and Arm."""
