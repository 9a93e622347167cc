//go:build !unix

package tunnel

import "errors"

// readsDescriptors says that a connection can be waited for without a buffer:
// not here.
const readsDescriptors = false

// readDescriptor is not called.
func readDescriptor(uintptr, []byte) (int, error) { return 0, errors.ErrUnsupported }
