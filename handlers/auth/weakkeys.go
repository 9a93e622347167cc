package auth

import (
	"bytes"
	"crypto/ed25519"
	"math/big"
	"slices"
)

// soundEd25519 refuses encodings that are not canonical (RFC 8032 §5.1.3) and
// the points of small order, under which one signature fits many messages.
// crypto/ed25519 verifies with both. The eight points of small order are
// known by their y alone; the sign of x is the top bit.
func soundEd25519(public ed25519.PublicKey) bool {
	y := bytes.Clone(public)
	y[len(y)-1] &= 0x7f
	for _, small := range smallOrder {
		if bytes.Equal(y, small[:]) {
			return false
		}
	}
	// Little-endian: y >= p = 2^255-19 is ed..ff, ff, …, 7f.
	if y[31] != 0x7f || y[0] < 0xed {
		return true
	}
	return slices.ContainsFunc(y[1:31], func(b byte) bool { return b != 0xff })
}

// smallOrder are the y coordinates, little-endian, of the points whose order
// is 4, 1, 8, 8 and 2.
var smallOrder = [][ed25519.PublicKeySize]byte{
	{},
	{1},
	{
		0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0,
		0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
	},
	{
		0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f,
		0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
	},
	{
		0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
	},
}

// rocaPrimes are the small primes by which a modulus of Infineon's broken key
// generator (ROCA, CVE-2017-15361) gives itself away.
var rocaPrimes = [...]int64{
	3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97,
	101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
}

// isROCA tells whether n is a power of 65537 modulo each small prime, as all
// moduli of that generator are. For any other modulus the odds are about 2^-27.
func isROCA(n *big.Int) bool {
	for _, p := range rocaPrimes {
		residue := new(big.Int).Mod(n, big.NewInt(p)).Int64()
		power := int64(1)
		for range p {
			if power == residue {
				break
			}
			power = power * 65537 % p
		}
		if power != residue {
			return false
		}
	}
	return true
}
