"""What lies under a surface, from backscattered-electron images at several beam energies.

Axes and units, defined here once:

* images are `[y, x, e]`, e: beam energies ascending; volumes are `[y, x, z]`, z = 0 at the surface and
  growing into the sample. The first two axes are the same pixels in both, so the eight symmetries of the
  square act on both alike, and images are NHWC with the energies as channels. `position_nm` is (x, y, z).
* energies are in keV, lengths in nm, angles in rad, and the unit is the suffix of the name.
* labels are uint8: 0 vacuum, then the materials in the order of the specimen (Si = 1, Cu = 2 in the paper's
  set). The network's classes are 0 = not Cu, 1 = Cu.
"""

__version__ = "0.1.0"
